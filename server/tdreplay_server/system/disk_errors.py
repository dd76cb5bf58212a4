"""What an error of the operating system, or of SQLite, says to a caller: the one map from them to the tree in `tdreplay.errors`."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdreplay.errors import CorruptDataError, FailedPreconditionError, ReplayError, ResourceExhaustedError, StorageError
from tdreplay_server.system.descriptors import file_limit, none_left

__all__ = ["NO_MEMORY", "NO_SPACE", "disk_error", "disk_errors", "unreadable", "unwritten"]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
NO_MEMORY = frozenset({errno.ENOMEM})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM})
BY_SQLITE = {
    getattr(sqlite3, "SQLITE_FULL", None): errno.ENOSPC,
    getattr(sqlite3, "SQLITE_NOMEM", None): errno.ENOMEM,
    getattr(sqlite3, "SQLITE_PERM", None): errno.EACCES,
    getattr(sqlite3, "SQLITE_READONLY", None): errno.EACCES,
}
"""Result codes of SQLite, which Python tells from 3.11 on, and the system errors that they stand for."""


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raises the errors of the system and of SQLite as errors of the tree. `what` says what is read or written: "the journal".

    Raises:
        ResourceExhaustedError: space, descriptors or memory ran out. What was there before is there still.
        FailedPreconditionError: this user may not do it.
        StorageError: anything else: the disk failed, or somebody changed what lies on it.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, ReplayError):
            raise
        raise disk_error(error, what) from error


def disk_error(error: Exception, what: str) -> ReplayError:
    """The error of the tree that stands for an error of the system or of SQLite."""
    number = _number(error)
    if number in NO_SPACE:
        return ResourceExhaustedError(f"the disk under {what} is full: {error}")
    if number in NO_DESCRIPTOR:
        return ResourceExhaustedError(
            f"{what} cannot be opened: this process has as many files and connections open as it may, {file_limit()} (ulimit -n): {error}"
        )
    if number in NO_MEMORY:
        return ResourceExhaustedError(f"there is no memory left for {what}: {error}")
    if number in NOT_ALLOWED:
        return FailedPreconditionError(f"{what} cannot be used by user {os.geteuid()}: {error}")
    return StorageError(f"{what} cannot be written: {error}")


def unreadable(error: Exception, what: str) -> ReplayError:
    """The error of the tree for one that came while stored bytes were read. They are broken, unless this process lacks a right, or what it needs."""
    reason = disk_error(error, what)
    return CorruptDataError(f"{what} cannot be read: {error}") if isinstance(reason, StorageError) else reason


def unwritten(error: Exception, place: Path) -> StorageError:
    """The error of the tree for one that came while rows were written into space that was reserved for them.

    The disk failed, whatever the error says, a lack of space too. The kernel may not keep what it could not write.
    """
    return StorageError(f"rows cannot be written to {place}: {error}")


def _number(error: Exception) -> int | None:
    """The system's number of an error, where it tells."""
    if isinstance(error, sqlite3.Error):
        # SQLite says that it cannot open a file, and not why.
        return BY_SQLITE.get(getattr(error, "sqlite_errorcode", None)) or (errno.EMFILE if none_left() else None)
    return getattr(error, "errno", None)
