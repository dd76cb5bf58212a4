"""Who is known to a server: the tokens of its file, which are read again when the file changes, and the names of certificates."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tdreplay.errors import InvalidArgumentError, UnauthenticatedError
from tdreplay_server.access.certificates import unlimited, with_roles_of
from tdreplay_server.access.principal import Principal
from tdreplay_server.access.tokens import Tokens, digest_of
from tdreplay_server.access.tokens_file import read_tokens
from tdreplay_server.system.file_changes import signature_of
from tdreplay_server.system.logs import log

__all__ = ["Identities"]

LOOK_SECONDS = 1.0
"""How often the file of tokens is looked at."""
NEVER = float("inf")


class _Known(NamedTuple):
    """A token as calls look it up: no call parses anything."""

    digest: bytes
    principal: Principal
    expires: float


class Identities:
    """Whom a server lets in. The methods may be called from any thread, and wait for nothing.

    Without a file of tokens, every certificate that TLS has verified is let in. With one, a caller needs a token, or a certificate whose name has a
    role.

    Args:
        tokens_file: the file of tokens; None: there are none.
        certificates: whether clients may show certificates.

    Raises:
        InvalidArgumentError: the file cannot be used.
    """

    def __init__(self, tokens_file: Path | None, *, certificates: bool) -> None:
        self._path, self._certificates = tokens_file, certificates
        self._known: Mapping[bytes, _Known] = {}
        self._over = threading.Event()
        if tokens_file is not None:
            self._signature = signature_of((tokens_file,))
            self._take(read_tokens(tokens_file))

    def of_token(self, token: str) -> Principal:
        """Who shows this token.

        Raises:
            UnauthenticatedError: the token is not known, or not valid any more.
        """
        digest = digest_of(token)
        # A lookup by hash tells who measures it nothing: nobody can choose how the hash of a guess begins.
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise UnauthenticatedError("the token is not known to this server: it was revoked, or is another server's")
        if known.expires <= time.time():
            raise UnauthenticatedError(f"the token {known.principal.name!r} has expired: ask for a new one")
        return known.principal

    def of_certificate(self, names: Sequence[str]) -> Principal:
        """Who shows a certificate with these common names, of which the first counts. No names: there is no certificate.

        Raises:
            UnauthenticatedError: that says nothing of roles, and the server has tokens.
        """
        name = next(iter(names), "")
        found = with_roles_of(name)
        if found is not None:
            return found
        if self._path is None:
            return unlimited(name)
        raise UnauthenticatedError("this server asks for a token: give it as token=, in TDREPLAY_TOKEN, or in a profile")

    def is_stranger(self, token: str | None) -> bool:
        """Whether nobody can be known by what a call shows: a token that is not known, or none, where there are no certificates."""
        return not self._certificates if token is None else digest_of(token) not in self._known

    def start(self) -> None:
        """From now on the file is looked at once a second, until `close`."""
        if self._path is not None:
            threading.Thread(target=self._watch, args=(self._path,), name="tdreplay-tokens", daemon=True).start()

    def close(self) -> None:
        """The file is not looked at any more."""
        self._over.set()

    def _take(self, tokens: Tokens) -> None:
        if not tokens.tokens:
            log.warning("there are no tokens: nobody can call; 'tdreplay-server token create' makes one", tokens_file=str(self._path))
        self._known = {
            digest: _Known(digest, token.principal, token.expires.timestamp() if token.expires else NEVER)
            for token in tokens.tokens
            for digest in (bytes.fromhex(token.sha256),)
        }

    def _watch(self, path: Path) -> None:
        while not self._over.wait(LOOK_SECONDS):
            found = signature_of((path,))
            if found != self._signature:
                self._signature = found
                self._read_again(path)

    def _read_again(self, path: Path) -> None:
        """Takes what the file has now. A file that cannot be used changes nothing, and is a line in the log."""
        try:
            tokens = read_tokens(path)
        except InvalidArgumentError as error:
            log.error("the tokens that were read before stay valid", error=str(error))
            return
        self._take(tokens)
        log.info("tokens read again", tokens_file=str(path), tokens=len(tokens.tokens))
