"""File descriptors: each connection, each table and each field of one takes some, and a process may have only so many."""

from __future__ import annotations

import errno
import os
import resource

from tdreplay.errors import ResourceExhaustedError

__all__ = ["TABLE_DESCRIPTORS", "check_descriptors", "connection_limit", "file_limit", "none_left", "raise_file_limit"]

TABLE_DESCRIPTORS = 4
"""Descriptors of an open table that has a directory: one of its lock, three of its journal. Each field that has bytes takes one more."""
SPARE = 32
"""Descriptors that tables leave free: for short needs of their journals, for checkpoints, and for calls that share memory."""
LEAST_CONNECTIONS = 16
UNLIMITED = 1 << 20
"""Stands for a limit where the system sets none."""


def raise_file_limit() -> None:
    """Lets this process have as many files open as the system allows it (the hard limit): shells commonly set the soft one to 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """The number of descriptors that this process may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def connection_limit() -> int:
    """The number of connections that leaves a server's tables the descriptors that they need: half of the limit, or what is left of it now."""
    limit = file_limit()
    return max(LEAST_CONNECTIONS, min(limit // 2, limit - _open() - SPARE))


def check_descriptors(wanted: int, what: str) -> None:
    """Passes where `wanted` descriptors are left, and `SPARE` more.

    Raises:
        ResourceExhaustedError: fewer are left. The message names `what` needs them, and the limit.
    """
    limit, used = file_limit(), _open()
    if used + wanted + SPARE > limit:
        raise ResourceExhaustedError(
            f"{what} needs {wanted} open files, and this process has {used} of at most {limit} (ulimit -n) and keeps {SPARE} free: raise the limit"
        )


def none_left() -> bool:
    """Whether this process cannot open anything more."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _open() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return file_limit()  # To look takes a descriptor, and none is left.
