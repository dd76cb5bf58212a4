"""How a client shows who it is, and makes sure of the server: TLS, and a token."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from tdreplay.errors import InvalidArgumentError

__all__ = ["OPEN", "TLS", "Access"]

MOST_TOKEN_BYTES = 4096
TOKEN = re.compile(rf"[!-~]{{1,{MOST_TOKEN_BYTES}}}")
"""What can travel in a header as it is: gRPC would show any other text in its error."""


@dataclass(frozen=True)
class TLS:
    """An encrypted connection. The server's certificate must be signed by one that is trusted, and have the name that the address has.

    The files are read when a connection is opened. Whoever opens one later, as the copy of a buffer does, reads them again.

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
        ca, key, certificate = self.contents()
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The bytes of ca_file, key_file and cert_file as they are now; None for what is not named.

        Raises:
            InvalidArgumentError: as `credentials`.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidArgumentError("tls: cert_file and key_file go together")
        ca, key, certificate = (_read_pem(name, getattr(self, name)) for name in ("ca_file", "key_file", "cert_file"))
        return ca, key, certificate


def _read_pem(name: str, path: str | Path | None) -> bytes | None:
    """A file of TLS. GRPC takes any bytes, and then fails at each connection without a word about the file."""
    try:
        content = None if path is None else Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ and a name that no user has.
        raise InvalidArgumentError(f"tls: {name} ({path}) cannot be read: {getattr(error, 'strerror', error)}") from None
    wanted = b"PRIVATE KEY-----" if name == "key_file" else b"-----BEGIN CERTIFICATE-----"
    if content is not None and wanted not in content:
        raise InvalidArgumentError(f"tls: {name} ({path}) has no {'private key' if name == 'key_file' else 'certificate'} in PEM")
    return content


@dataclass(frozen=True)
class Access:
    """What a client shows to a server. It can be pickled: the pickle has the token in it.

    Attributes:
        tls: how the connection is encrypted; None: it is not.
        token: what the server knows the caller by; '': nothing.
        token_file: the file from which the token came; None: it was given.
    """

    tls: TLS | None = None
    token: str = ""
    token_file: Path | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def renewed(self) -> Access:
        """The access with the token that its file has now.

        Raises:
            InvalidArgumentError: the file cannot be read, or has no token.
        """
        return self if self.token_file is None else replace(self, token=read_token(self.token_file))

    def __repr__(self) -> str:
        """Without the token: errors and logs show it."""
        return f"Access(tls={self.tls}, token={'...' if self.token else ''!r})"


OPEN = Access()
"""The access of a client that shows nothing."""


def read_token(path: Path) -> str:
    """The token that a file holds, without the spaces and the line's end around it.

    Raises:
        InvalidArgumentError: the file cannot be read, or holds no token. The message has nothing of what it holds.
    """
    try:
        token = path.read_bytes()[: MOST_TOKEN_BYTES + 2].decode(errors="replace").strip()
    except OSError as error:
        raise InvalidArgumentError(f"token_file ({path}) cannot be read: {error.strerror}") from None
    return check_token(token, f"token_file ({path})")


def check_token(token: str, what: str) -> str:
    """`token`, where it can be sent. `what`: where it comes from.

    Raises:
        InvalidArgumentError: it cannot. The message does not show it.
    """
    if TOKEN.fullmatch(token) is None:
        raise InvalidArgumentError(f"{what} holds no token: that is 1 to {MOST_TOKEN_BYTES} letters, digits and signs, without spaces")
    return token
