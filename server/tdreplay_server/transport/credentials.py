"""The server's side of TLS: certificates from files, which are read again when they change."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from tdreplay.errors import InvalidArgumentError
from tdreplay_server.system.file_changes import signature_of
from tdreplay_server.system.logs import log
from tdreplay_server.system.small_files import opened_at_once

__all__ = ["CertificateFiles", "server_credentials"]

MOST_BYTES = 4 << 20
"""As much is read of a file: certificates of all authorities that a system trusts have a quarter of a MiB."""


@dataclass(frozen=True)
class CertificateFiles:
    """Where the server's certificate lies, and what clients have to show. All files are PEM.

    Attributes:
        cert_file: the certificate, and after it those that sign it.
        key_file: its private key, without a password.
        trusted_ca_file: the certificates that sign those of clients; None: no client is asked for one.
    """

    cert_file: Path
    key_file: Path
    trusted_ca_file: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(path for path in (self.cert_file, self.key_file, self.trusted_ca_file) if path is not None)

    def check(self) -> None:
        """Passes where the files are certificates, and the key is the certificate's.

        Raises:
            InvalidArgumentError: they are not. The message names the file.
        """
        for path in self.paths:
            _read(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert_file, self.key_file, password="")  # Else OpenSSL would ask on the terminal.
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgumentError(f"cert_file ({self.cert_file}) and key_file ({self.key_file}) do not go together: {_reason(error)}") from None
        try:
            if self.trusted_ca_file is not None:
                context.load_verify_locations(self.trusted_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgumentError(f"trusted_ca_file ({self.trusted_ca_file}) has no certificates: {_reason(error)}") from None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What they have, for gRPC. They are not checked here."""
        roots = None if self.trusted_ca_file is None else _read(self.trusted_ca_file)
        return grpc.ssl_server_certificate_configuration([(_read(self.key_file), _read(self.cert_file))], roots)


class _Reloading:
    """The certificates for new connections: gRPC asks at each one, from several threads."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files, self._lock = files, threading.Lock()
        self._signature = signature_of(files.paths)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Those that are in the files now; None: the ones that gRPC has already, because these are the same, or cannot be used."""
        with self._lock:
            found = signature_of(self._files.paths)
            if found == self._signature:
                return None
            self._signature = found
            return self._changed()

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            self._files.check()
            configuration = self._files.configuration()
        except InvalidArgumentError as error:
            log.error("the certificate that was read before stays in use", error=str(error))
            return None
        # What was checked is what was read: else the next connection looks again.
        if signature_of(self._files.paths) != self._signature:
            self._signature = ()
            return None
        log.info("certificate read again", cert_file=str(self._files.cert_file))
        return configuration


def server_credentials(cert_file: Path | None, key_file: Path | None, trusted_ca_file: Path | None) -> grpc.ServerCredentials | None:
    """Credentials that follow the files: a new connection gets the certificate that is there then, and one that is open goes on with its own.

    Files that are being replaced, and do not go together, change nothing. Without files there are no credentials.

    Raises:
        InvalidArgumentError: the files cannot be used now.
    """
    if cert_file is None or key_file is None:
        return None
    files = CertificateFiles(cert_file, key_file, trusted_ca_file)
    fetch = _Reloading(files)
    files.check()
    # Its type says that None cannot be given, and its documentation that it can.
    asked = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)
    return grpc.dynamic_ssl_server_credentials(files.configuration(), asked, require_client_authentication=files.trusted_ca_file is not None)


def _read(path: Path) -> bytes:
    try:
        with opened_at_once(path) as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}") from None


def _reason(error: OSError) -> str:
    """OpenSSL's words for what is wrong."""
    return str(getattr(error, "reason", None) or error.strerror or error).lower().replace("_", " ")
