"""How a client shows who it is, and makes sure of the server: TLS, and a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown
from tdreplay_client.transport.addresses import is_here

__all__ = ["OPEN", "TLS", "Access", "found_access"]


@dataclass(frozen=True)
class TLS:
    """An encrypted connection. The server's certificate must be signed by one that is trusted, and have the name that the address has.

    Attributes:
        ca_file: the certificates that are trusted, PEM; None: those of the system.
        cert_file: the client's own certificate, PEM, for servers that ask for one.
        key_file: its private key, PEM.
        server_name: the name that the server's certificate has, where that is not the address's.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """GRPC's credentials. The files are read now.

        Raises:
            InvalidArgumentError: a file cannot be read, or one of certificate and key is missing.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidArgumentError("tls: cert_file and key_file go together")
        ca, key, certificate = (_read(name, getattr(self, name)) for name in ("ca_file", "key_file", "cert_file"))
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _read(name: str, path: str | Path | None) -> bytes | None:
    try:
        return None if path is None else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"tls: {name} ({path}) cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Access:
    """What a client shows to a server. It can be pickled.

    Attributes:
        tls: how the connection is encrypted; None: it is not.
        token: what the server knows the caller by; '': nothing.
    """

    tls: TLS | None = None
    token: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def __repr__(self) -> str:
        """Without the token: errors and logs show it."""
        return f"Access(tls={self.tls}, token={'...' if self.token else ''!r})"


OPEN = Access()
"""The access of a client that shows nothing."""


def found_access(address: str, tls: TLS | bool | None, token: str | None) -> Access:
    """What a client shows to the server at `address`: what is given.

    Raises:
        InvalidArgumentError: it is of the wrong kind, or a token would go to another host without TLS.
    """
    if tls is not None and not isinstance(tls, (TLS, bool)):
        raise InvalidArgumentError(f"tls ({shown(tls)}) must be a TLS, True, False or None")
    if token is not None and not isinstance(token, str):
        raise InvalidArgumentError("token must be a text")
    access = Access(TLS() if tls is True else tls or None, token or "")
    if access.token and access.tls is None and not is_here(address):
        raise InvalidArgumentError(
            f"a token goes to {address} over TLS alone: give tls, too. Without it, a token goes over loopback and Unix sockets"
        )
    return access
