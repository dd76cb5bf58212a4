"""Whether a server can listen at an address, which process does already, and who may connect to a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tdreplay.errors import ServerUnavailableError
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import make_directory

__all__ = ["check_folder", "check_free", "is_taken", "socket_of"]


def check_free(address: str) -> None:
    """Passes where a server can listen there.

    Raises:
        ServerUnavailableError: it cannot. The message says why, and names the process that has the address, where this one may see it.
    """
    error = _tried(address)
    if error is not None:
        reason = os.strerror(error.errno).lower() if isinstance(error.errno, int) and error.errno > 0 else str(error.strerror)
        owner = _owner(address) if error.errno == errno.EADDRINUSE else ""
        raise ServerUnavailableError(f"address {address} cannot be listened on: {reason}{owner}")


def is_taken(address: str) -> bool:
    """Whether a server cannot listen there because somebody does already."""
    error = _tried(address)
    return error is not None and error.errno == errno.EADDRINUSE


def _tried(address: str) -> OSError | None:
    """Why nobody can listen there; None: it can be done."""
    try:
        if address.startswith("unix:"):
            _check_socket(Path(address.removeprefix("unix:")))
        else:
            _check_port(*_host_and_port(address))
    except OSError as error:
        return error
    return None


def _check_socket(path: Path) -> None:
    """Passes where a socket can be made. A server that listens there is looked for here, because gRPC would take the path away from it."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if not probe.connect_ex(str(path)):
                raise OSError(errno.EADDRINUSE, "")
    elif path.exists():
        raise OSError(errno.EADDRINUSE, "")
    folder = path.parent if path.parent.exists() else path.parent.parent  # The folder is made, those above it are not.
    if not folder.exists():
        raise OSError(errno.ENOENT, "")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "")


def check_folder(address: str, *, insecure: bool) -> None:
    """Passes where no other user can put a socket of their own in the place of a Unix socket. A folder with the sticky bit, as /tmp, lets nobody.

    Raises:
        ServerUnavailableError: others can, and that is not asked for.
    """
    folder = Path(address.removeprefix("unix:")).parent
    mode = folder.stat().st_mode if address.startswith("unix:") and folder.exists() else stat.S_ISVTX
    if mode & stat.S_ISVTX or insecure:
        return
    if mode & stat.S_IWOTH:
        raise ServerUnavailableError(
            f"address {address} cannot be listened on: all users may write to {folder}, and replace the socket by one of their own, which clients"
            f" would take for the server's. Use another folder, or: chmod o-w {folder}, or set insecure"
        )
    if mode & stat.S_IWGRP:
        log.warning("users of the folder's group can replace the socket by one of their own", folder=str(folder))


@contextmanager
def socket_of(address: str, mode: int) -> Iterator[None]:
    """For ``with``: a Unix socket that is made meanwhile lets those users connect whom `mode` lets write. Its folder is made where it is missing.

    bind(2) takes the socket's mode from the umask, and from nothing else.
    """
    if not address.startswith("unix:"):
        yield
        return
    if not (folder := Path(address.removeprefix("unix:")).parent).exists():
        make_directory(folder)
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_port(host: str, port: int) -> None:
    for family, kind, protocol, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As gRPC does: connections that end do not keep a port.
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(where)
            probe.listen(1)


def _owner(address: str) -> str:
    """Which process listens there, as the end of a message; empty where this process may not see it."""
    inode = _inode(address)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if inode and os.readlink(link) == f"socket:[{inode}]":
                name = (link.parents[1] / "comm").read_text().strip()
                return f" by process {link.parents[1].name} ({name!r})"
    return ""


def _inode(address: str) -> str:
    """The inode of the socket that listens there, from the tables that proc(5) describes; empty where there is none."""
    if address.startswith("unix:"):
        path = str(Path(address.removeprefix("unix:")))
        sockets = [line.split() for line in _lines("/proc/net/unix")]
        return next((cells[6] for cells in sockets if len(cells) > 7 and cells[7] == path and cells[3] == "00010000"), "")
    port = f"{_host_and_port(address)[1]:04X}"
    sockets = [line.split() for name in ("/proc/net/tcp", "/proc/net/tcp6") for line in _lines(name)]
    return next((cells[9] for cells in sockets if cells[1].endswith(f":{port}") and cells[3] == "0A"), "")


def _lines(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text().splitlines()[1:]
    return []
