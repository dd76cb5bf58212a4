"""Addresses of servers: HOST:PORT, [IPv6]:PORT or unix:PATH."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from tdreplay.errors import InvalidArgumentError

__all__ = ["check_address", "is_loopback"]

MOST_SOCKET_PATH = 107
"""The most bytes of a Unix socket's path, without the zero that ends it (unix(7))."""


def check_address(address: str, least_port: int = 1) -> str:
    """`address`, after a check. A ~ at the start of a socket's path becomes the user's home.

    gRPC would check less: it takes port 65536 + p for p, and a host alone for port 443.

    Args:
        address: the address.
        least_port: the lowest port that is allowed. A server may be told port 0, and then picks a free one.

    Raises:
        InvalidArgumentError: it is not an address; the message says the value and the rule.
    """
    socket = re.fullmatch(r"unix:(?://(?=/))?([^\s\0]+)", address)
    if socket:
        return f"unix:{_socket_path(socket[1])}"
    host_port = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\0\[\]]+):([0-9]{1,5})", address)
    if host_port is None or not least_port <= int(host_port[2]) < 1 << 16:
        raise InvalidArgumentError(f"address ({address[:120]!r}) must be HOST:PORT, [IPv6]:PORT or unix:PATH, with a port from {least_port} to 65535")
    return address


def is_loopback(address: str) -> bool:
    """Whether an address is reached from its own host alone: 127.0.0.0/8, [::1], localhost, or a Unix socket. Other names are not looked up."""
    host = address.rpartition(":")[0].strip("[]").rstrip(".").lower()
    return address.startswith("unix:") or host == "localhost" or host.endswith(".localhost") or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _socket_path(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InvalidArgumentError(f"address ('unix:{text}') begins with ~ and a name that no user has") from None
    if len(os.fsencode(path)) > MOST_SOCKET_PATH:
        raise InvalidArgumentError(f"address (unix:{path}): a Unix socket's path has {MOST_SOCKET_PATH} bytes at most, not {len(os.fsencode(path))}")
    return path
