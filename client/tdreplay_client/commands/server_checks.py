"""What `tdreplay doctor` looks at between this host and a server: its name, whether it listens, TLS, and who it takes the caller for.

Each step needs the one before. The first one that fails is the last one that is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from tdreplay.errors import PermissionDeniedError, ReplayError, UnauthenticatedError
from tdreplay.shard_words import shard_words
from tdreplay_client.commands.check import Check, failed, ok, warning
from tdreplay_client.transport.access import TLS
from tdreplay_client.transport.addresses import is_here
from tdreplay_client.transport.failures import CA, NAME, NAMED_HINT, NAMELESS_HINT, OPEN_HINT
from tdreplay_client.transport.health import serves
from tdreplay_client.transport.probes import certificate_ends, connected_socket, resolved, shaken
from tdreplay_client.transport.targets import Target

if TYPE_CHECKING:
    from tdreplay_client.transport.connection import Connection

__all__ = ["server_checks"]

SOON_DAYS = 14
TOKEN = "make one on the server, tdreplay-server token create, and set it: token=, TDREPLAY_TOKEN, or token in the profile"  # noqa: S105 - no token.
PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""What a handshake says where the other end speaks no TLS."""


def server_checks(target: Target, seconds: float) -> Iterator[Check]:
    """Looks at a server, from the name to the token, up to the first thing that is in the way."""
    for step in (_name, _listens, _tls, _own_certificate, _health, _caller):
        for check in step(target, seconds):
            yield check
            if check.state == "failed":
                return


def _name(target: Target, _seconds: float) -> Iterator[Check]:
    try:
        found = resolved(target.address)
    except OSError as error:
        fix = "look at the spelling, at /etc/hosts and at the DNS server"
        yield failed("name", f"{target.address} does not resolve: {error.strerror or error}", fix)
    else:
        yield ok("name", f"{target.address} is {', '.join(found)}" if found else f"{target.address} needs none")


def _listens(target: Target, seconds: float) -> Iterator[Check]:
    try:
        connected_socket(target.address, seconds).close()
    except TimeoutError:
        fix = "a firewall drops the packets, or the host is off: ask its operator"
        yield failed("reachable", f"{target.address} does not answer within {seconds:g} s", fix)
    except (ConnectionRefusedError, FileNotFoundError):
        fix = "start the server, or look at its --address: one on 127.0.0.1 is for its own host alone"
        yield failed("reachable", f"nobody listens at {target.address}: the connection is refused", fix)
    except OSError as error:
        yield failed("reachable", f"{target.address}: {error.strerror or error}", "look at the network between the two hosts")
    else:
        yield ok("reachable", f"{target.address} listens")


def _tls(target: Target, seconds: float) -> Iterator[Check]:
    tls = target.access.tls
    shown = shaken(target.address, tls or TLS(), seconds, trusting=True)
    speaks = shown.ends is not None
    if tls is None:
        yield failed("tls", "the server speaks TLS, and this client does not", OPEN_HINT) if speaks else ok("tls", "neither end speaks TLS")
        return
    if not speaks:
        yield _without_certificate(target, shown.failure)
        return
    checked = shaken(target.address, tls, seconds)
    if checked.failure:
        yield failed("tls", f"there is no encrypted connection: {checked.failure}", _fix(checked.failure, tls))
        return
    yield _dated("tls", "the server's certificate", shown.ends, "renew it on the server: it reads the new files by itself")


def _without_certificate(target: Target, failure: str) -> Check:
    """What to say of a server that showed no certificate."""
    if any(said in failure for said in PLAIN):
        fix = f"leave TLS out (TDREPLAY_TLS=false), or ask who listens at {target.address}"
        return failed("tls", "this client speaks TLS, and the server does not", fix)
    return failed("tls", f"the server ends the handshake: {failure}", "ask its operator; its log says why")


def _fix(failure: str, tls: TLS) -> str:
    said = failure.lower()
    if "hostname" in said or "ip address mismatch" in said:
        return NAME
    if "expired" in said or "not yet valid" in said:
        return "renew the server's certificate, and look at the clocks of both hosts"
    if "issuer" in said or "self" in said or "verify" in said:
        return CA
    return NAMELESS_HINT if tls.cert_file is None else NAMED_HINT


def _dated(name: str, what: str, ends: datetime | None, fix: str) -> Check:
    """What to say of a certificate that ends then."""
    if ends is None:
        return ok(name, f"{what} is accepted")
    days = (ends - datetime.now(timezone.utc)).total_seconds() / 86400
    text = f"{what} is valid until {ends:%Y-%m-%d %H:%M} UTC"
    if days < 0:
        return failed(name, f"{what} expired on {ends:%Y-%m-%d %H:%M} UTC", fix)
    return ok(name, text) if days >= SOON_DAYS else warning(name, f"{text}: {days:.1f} days", fix)


def _own_certificate(target: Target, _seconds: float) -> Iterator[Check]:
    tls = target.access.tls
    if tls is not None and tls.cert_file is not None:
        yield _dated("own certificate", f"{tls.cert_file}", certificate_ends(tls.cert_file), "get a new one from the authority that signed it")


def _health(target: Target, seconds: float) -> Iterator[Check]:
    serving, answer = serves(target.address, seconds, "", target.access)
    yield ok("health", answer) if serving else failed("health", answer, "look at the server's log: it starts, stops, or its disk failed")


def _caller(target: Target, seconds: float) -> Iterator[Check]:
    from tdreplay_client.transport.connection import Connection  # Here: it brings the proto, which takes longer than all checks of this host.

    connection = Connection(target.address, seconds, target.access)
    try:
        yield from _asked(connection, target)
    finally:
        connection.close()


def _asked(connection: Connection, target: Target) -> Iterator[Check]:
    from tdreplay.v1 import replay_buffer_pb2 as pb

    try:
        tables = list(connection.retried(lambda budget: connection.unary("ListTables", pb.ListTablesRequest(), budget)).tables)
    except UnauthenticatedError as error:
        shown = "the token is not known, or not valid any more" if target.access.token else "a token is asked for, and none is set"
        yield failed("token", f"{shown}: {error}", TOKEN)
        return
    except ReplayError as error:
        yield failed("token", str(error), "look at the server's log")
        return
    may = [words for words, allowed in _rights(connection, tables[0] if tables else "default") if allowed]
    names = f"{', '.join(tables[:8])}{', ...' if len(tables) > 8 else ''}" or "none yet"
    text = f"{_shown_as(target)}; it may {', '.join(may) or 'look'}; tables: {names}"
    yield ok("token", text) if may else warning("token", text, "give its token a role: tdreplay-server token create --role learner")
    yield from _server(connection, target)


def _shown_as(target: Target) -> str:
    if target.access.token:
        return "the token is known"
    return "the certificate is known" if target.access.tls and target.access.tls.cert_file else "the server asks for no token"


def _rights(connection: Connection, table: str) -> Iterator[tuple[str, bool]]:
    """What the caller may do: each time a call that the server refuses as it is, and before that, where the caller may not make it at all."""
    from tdreplay.v1 import replay_buffer_pb2 as pb

    yield "insert", _allowed(connection, "Add", pb.AddRequest(table=table))
    yield "sample", _allowed(connection, "SampleBatch", pb.SampleBatchRequest(table=table))
    yield "see the server's status", _allowed(connection, "ServerStatus", pb.ServerStatusRequest())
    yield "administrate", _allowed(connection, "Checkpoint", pb.CheckpointRequest(table=table, name="no/name"))


def _allowed(connection: Connection, call: str, request: Any) -> bool:
    try:
        if call in ("Add", "ServerStatus"):
            connection.unary(call, request)
        else:
            next(connection.stream(call, request), None)
    except PermissionDeniedError:
        return False
    except ReplayError:
        return True
    return True


def _server(connection: Connection, target: Target) -> Iterator[Check]:
    """What a server says of itself, to whom it says that."""
    from tdreplay.v1 import replay_buffer_pb2 as pb
    from tdreplay_client.commands.host_checks import installed_version

    try:
        status = connection.unary("ServerStatus", pb.ServerStatusRequest())
    except ReplayError as error:
        yield ok("server's version", f"it is for readers and admins: {type(error).__name__}")
    else:
        ours = installed_version("tdreplay")
        text = f"server {status.version}, client {ours}"
        same = status.version == ours
        yield ok("server's version", text) if same else warning("server's version", text, "both may work together; upgrade the older one")
        words = shard_words(status.cluster, status.shard if status.HasField("shard") else None)
        if words:
            yield ok("shard", words)
    if is_here(target.address):
        yield ok("transport", "shared memory, where the server runs as this user and in the same containers; else gRPC")
    else:
        yield ok("transport", "gRPC: the server is on another host")
