"""Certificates, tokens and calls as the tests of access need them: made anew for each run, and valid for this host alone."""

from __future__ import annotations

from pathlib import Path

import grpc
import trustme

from tdreplay_server.access.tokens import Token, Tokens, digest_of, new_secret
from tdreplay_server.access.tokens_file import change_tokens

__all__ = ["Authority", "bearer", "issued"]


class Authority:
    """A certificate authority, with files for a server below `directory`.

    Attributes:
        directory: where the files lie.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self._ca = directory, trustme.CA()
        self._ca.cert_pem.write_to_path(str(self.ca_file))
        self.renew()

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def server_files(self) -> dict[str, Path]:
        """The settings of a server with TLS."""
        return {"cert_file": self.directory / "server.pem", "key_file": self.directory / "server.key"}

    @property
    def mutual(self) -> dict[str, object]:
        """The settings of a server that asks for certificates."""
        return {**self.server_files, "trusted_ca_file": self.ca_file, "client_cert_auth": True}

    def made(self) -> tuple[bytes, bytes]:
        """Another certificate for the server, and its key."""
        issued = self._ca.issue_cert("localhost", "127.0.0.1", "::1")
        return b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes()

    def renew(self) -> None:
        """Gives the server another certificate, as a tool would: each file whole, the certificate first."""
        for path, content in zip(self.server_files.values(), self.made(), strict=True):
            scratch = path.with_suffix(".new")
            scratch.write_bytes(content)
            scratch.rename(path)

    def credentials(self, common_name: str | None = None) -> grpc.ChannelCredentials:
        """Those of a client; None: it has no certificate."""
        if common_name is None:
            return grpc.ssl_channel_credentials(self._ca.cert_pem.bytes())
        issued = self._ca.issue_cert("client.invalid", common_name=common_name)
        return grpc.ssl_channel_credentials(self._ca.cert_pem.bytes(), issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())


def issued(path: Path, **settings: object) -> str:
    """A new token of a tokens file, made without the command."""
    secret = new_secret()
    entry = Token.model_validate({"sha256": digest_of(secret).hex(), **settings})
    change_tokens(path, lambda tokens: Tokens.with_token(tokens, entry))
    return secret


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata with which a client shows a token."""
    return (("authorization", f"Bearer {token}"),)
