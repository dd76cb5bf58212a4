"""Files and directories that only this user can read, and that are what their names say: nothing here follows a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from tdreplay.errors import FailedPreconditionError
from tdreplay_server.system.logs import log

__all__ = [
    "FILE_MODE",
    "check_directory",
    "check_no_link",
    "check_tree",
    "close_to_others",
    "make_directories",
    "make_directory",
    "open_file",
    "read_file",
    "sync",
    "warn_of_others",
    "write_file",
]

FILE_MODE, DIRECTORY_MODE = 0o600, 0o700


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a regular file, which is made where `flags` has O_CREAT.

    Raises:
        FailedPreconditionError: it is a link, or no regular file.
        OSError: it cannot be opened.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _other(path, "a regular file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _other(path, "a regular file")
        if flags & os.O_EXCL:
            os.fchmod(file, FILE_MODE)  # Whatever the umask is.
    except BaseException:
        os.close(file)
        raise
    return file


def read_file(path: Path) -> bytes:
    """The bytes of a regular file. Errors: as `open_file`."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Makes a file. Errors: as `open_file`; it must not be there."""
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)


def make_directory(path: Path) -> None:
    """Makes a directory where it is missing.

    Raises:
        FailedPreconditionError: something else is there.
    """
    try:
        path.mkdir(DIRECTORY_MODE)
    except FileExistsError:
        check_directory(path)
    else:
        path.chmod(DIRECTORY_MODE)


def make_directories(path: Path) -> None:
    """Makes a directory, and those above it, on the disk. Those that are there may be links: a user chose where the data lie."""
    if not path.is_dir():
        make_directories(path.parent)
        make_directory(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a directory's entries, or a file's bytes, are on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def close_to_others(path: Path) -> None:
    """Keeps other users out of a directory that an older version made. Another user's directory stays as it is."""
    with suppress(PermissionError):
        path.chmod(DIRECTORY_MODE)


def warn_of_others(path: Path) -> None:
    """Says in the log that other users may look into a data directory, which stays as it is: a user made it so. What lies in it is closed to them."""
    if path.stat().st_mode & stat.S_IRWXO:
        log.warning("other users may look into the data directory: chmod o= DIRECTORY keeps them out", directory=str(path))


def check_directory(path: Path) -> None:
    """Passes where there is a directory, or nothing.

    Raises:
        FailedPreconditionError: it is a link, or a file.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise _other(path, "a directory")


def check_no_link(path: Path) -> None:
    """Passes where there is no link.

    Raises:
        FailedPreconditionError: it is a link.
    """
    if path.is_symlink():
        raise _other(path, "a directory")


def check_tree(path: Path) -> None:
    """Passes where all that a directory holds, however deep, are directories and regular files; and where there is no directory.

    Raises:
        FailedPreconditionError: it holds something else, such as a link, or is something else itself.
    """
    check_directory(path)
    for parent, directories, files in os.walk(path):
        for name in directories:
            check_directory(Path(parent, name))
        for name in files:
            _check_file(Path(parent, name))


def _check_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _other(path, "a regular file")


def _other(path: Path, wanted: str) -> FailedPreconditionError:
    what = "a symbolic link, which is not followed" if path.is_symlink() else "something else"
    return FailedPreconditionError(f"{path} must be {wanted}, and it is {what}: remove it, or put {wanted} in its place")
