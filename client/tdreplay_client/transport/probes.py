"""Looks at a server from outside, without gRPC: whether its name is known, whether it listens, and what TLS it speaks."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from tdreplay_client.transport.access import TLS
from tdreplay_client.transport.addresses import place_of

__all__ = ["Handshake", "certificate_ends", "connected_socket", "resolved", "shaken"]

NOTICE_SECONDS = 0.5
"""How long a server may take to say that it does not like a client's certificate: with TLS 1.3 it does so after the handshake."""
TIMES = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""Tags of the two ways in which a certificate writes a time: UTCTime and GeneralizedTime."""


class Handshake(NamedTuple):
    """What came of a handshake of TLS.

    Attributes:
        failure: why there is no encrypted connection; '': there is one.
        ends: when the server's certificate ends; None: it showed none.
    """

    failure: str
    ends: datetime | None = None


def resolved(address: str) -> list[str]:
    """The numbers that the name in an address stands for.

    Raises:
        OSError: nobody knows the name.
    """
    host, port = place_of(address)
    return [] if not port else sorted({str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})


def connected_socket(address: str, seconds: float) -> socket.socket:
    """A connection to an address.

    Raises:
        OSError: there is none: ConnectionRefusedError, TimeoutError, FileNotFoundError for a socket's path.
    """
    host, port = place_of(address)
    if port:
        return socket.create_connection((host, port), seconds)
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(seconds)
    try:
        made.connect(host)
    except OSError:
        made.close()
        raise
    return made


def shaken(address: str, tls: TLS, seconds: float, *, trusting: bool = False) -> Handshake:
    """Tries a handshake, as a client with these settings makes it. `trusting`: whatever certificate the server shows.

    Raises:
        OSError: there is no connection at all.
        InvalidArgumentError: a file of TLS cannot be read.
    """
    tls.contents()
    context = _context(tls, trusting=trusting)
    with connected_socket(address, seconds) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=tls.server_name or place_of(address)[0] or "localhost") as made:
                certificate = made.getpeercert(binary_form=True)
                return Handshake(_refusal(made), None if certificate is None else _ends(certificate))
        except ssl.SSLCertVerificationError as error:
            return Handshake(error.verify_message)
        except (ssl.SSLError, ConnectionError, TimeoutError) as error:
            return Handshake(getattr(error, "reason", None) or str(error))


def _context(tls: TLS, *, trusting: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if trusting:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif tls.ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(Path(tls.ca_file).expanduser())
    if tls.cert_file is not None and tls.key_file is not None:
        context.load_cert_chain(Path(tls.cert_file).expanduser(), Path(tls.key_file).expanduser(), password=lambda: "")
    return context


def _refusal(made: ssl.SSLSocket) -> str:
    """Why the server ends the connection after the handshake; '': it does not."""
    made.settimeout(NOTICE_SECONDS)
    try:
        return "" if made.recv(1) else "the server closed the connection"
    except TimeoutError:  # It waits for what comes.
        return ""
    except OSError as error:
        return getattr(error, "reason", None) or str(error)


def certificate_ends(file: str | Path) -> datetime | None:
    """When the first certificate of a file ends; None: that cannot be told.

    Raises:
        OSError: the file cannot be read.
    """
    text = Path(file).expanduser().read_text(errors="replace")
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    with suppress(ValueError):
        return _ends(ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)]))
    return None


def _ends(certificate: bytes) -> datetime | None:
    """When a certificate (X.509 in DER, RFC 5280) ends. The standard library says it only of one that it trusts."""
    with suppress(IndexError, ValueError):
        signed, _ = _inside(_inside(certificate)[0])
        if signed[0] == 0xA0:  # The version, which is not always there. Then come number, algorithm, issuer and times.
            signed = _inside(signed)[1]
        for _ in range(3):
            signed = _inside(signed)[1]
        end = _inside(_inside(signed)[0])[1]
        return datetime.strptime(_inside(end)[0].decode(), TIMES[end[0]]).replace(tzinfo=timezone.utc)
    return None


def _inside(value: bytes) -> tuple[bytes, bytes]:
    """The content of the first value of DER, and what follows that value."""
    length, start = value[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(value[2:start], "big")
    return value[start : start + length], value[start + length :]
