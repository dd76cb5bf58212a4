"""The guard that asks who calls, and lets a call pass where the caller's roles and tables allow it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tdreplay.errors import PermissionDeniedError, UnauthenticatedError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay_server.access.identities import Identities
from tdreplay_server.access.principal import Principal
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answers, Proceed

__all__ = ["AUTHORIZATION", "Identity"]

AUTHORIZATION, SCHEME = "authorization", "bearer"
WITHOUT_TABLE = frozenset({"ListTables", "ServerStatus"})
"""The calls whose requests name no table."""


class Identity:
    """Sets `call.principal`, and refuses what the caller may not do.

    Who calls, and what, is known before anything of a request is read; a table when a request names it.

    Args:
        identities: who is known.
    """

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Answers:
        """Raises UnauthenticatedError where nobody knows the caller, PermissionDeniedError where it may not make the call, or not on that table."""
        call.principal = principal = self._principal(call)
        if not principal.may_call(call.method):
            raise PermissionDeniedError(f"{principal.name!r} may not call {call.method}: it has {_roles(principal)}")
        free = principal.may_use_all or call.method in WITHOUT_TABLE
        return proceed(requests if free else _on_its_tables(requests, principal), call)

    def is_stranger(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call with this metadata will be refused because nobody knows its caller. It takes a microsecond or two, and waits for nothing."""
        sent = dict(metadata).get(AUTHORIZATION)
        return self._identities.is_stranger(None if sent is None else _parts(sent)[1])

    def _principal(self, call: Call) -> Principal:
        """Who calls. A token that is sent counts, and has to be valid, whatever certificate comes with it."""
        sent = call.metadata.get(AUTHORIZATION)
        return self._identities.of_certificate(call.certificate_names) if sent is None else self._identities.of_token(_token(sent))


def _token(sent: str | bytes) -> str:
    scheme, token = _parts(sent)
    if scheme != SCHEME or not token:
        raise UnauthenticatedError("the metadata 'authorization' must be 'Bearer TOKEN'")
    return token


def _parts(sent: str | bytes) -> tuple[str, str]:
    scheme, _, token = str(sent).partition(" ")
    return scheme.lower(), token.strip()


def _on_its_tables(requests: Iterator[Request], principal: Principal) -> Iterator[Request]:
    """The requests, up to one that names a table that is not the caller's. A later request may name another one, and none means the same."""
    allowed: str | None = None
    for request in requests:
        name = request.head.table or allowed or DEFAULT_TABLE
        if name != allowed:
            _check_table(principal, name)
            allowed = name
        yield request


def _check_table(principal: Principal, name: str) -> None:
    if not principal.may_use(name):
        raise PermissionDeniedError(f"{principal.name!r} may not use the table {name[:80]!r}: it has {', '.join(principal.tables)[:400]}")


def _roles(principal: Principal) -> str:
    return ", ".join(sorted(role.value for role in principal.roles)) or "no role"
