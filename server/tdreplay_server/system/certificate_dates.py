"""From when until when the certificates of a PEM file are valid."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import datetime, timezone

from tdreplay.errors import InvalidArgumentError

__all__ = ["validity"]

BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)
SEQUENCE, VERSION, UTC_TIME, GENERAL_TIME = 0x30, 0xA0, 0x17, 0x18  # Tags of DER, as X.690 numbers them.


def validity(pem: str) -> list[tuple[datetime, datetime]]:
    """The first and the last moment at which each certificate is valid, in the order of the file.

    Read from the DER of X.509 itself (RFC 5280, 4.1): the standard library shows these dates of its peers only.

    Raises:
        InvalidArgumentError: a certificate is none.
    """
    try:
        return [_validity(ssl.PEM_cert_to_DER_cert(block)) for block in BLOCK.findall(pem)]
    except (ValueError, IndexError) as error:
        raise InvalidArgumentError(f"is no certificate: {error}") from None


def _validity(der: bytes) -> tuple[datetime, datetime]:
    ((_, certificate),) = _parts(der)
    (_, signed), *_ = _parts(certificate)
    fields = [content for tag, content in _parts(signed) if tag != VERSION]
    _serial, _algorithm, _issuer, dates, *_ = fields
    first, last = (_moment(tag, content.decode("ascii")) for tag, content in _parts(dates))
    return first, last


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of values that lie one behind the other."""
    while data:
        tag, size, start = data[0], data[1], 2
        if size > 0x7F:  # The length of the length.
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            raise ValueError("it ends too early")
        yield tag, data[start : start + size]
        data = data[start + size :]


def _moment(tag: int, text: str) -> datetime:
    if tag not in (UTC_TIME, GENERAL_TIME):
        raise ValueError("a date is none")
    whole = text if tag == GENERAL_TIME else f"{'19' if text >= '50' else '20'}{text}"
    return datetime.strptime(whole, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
