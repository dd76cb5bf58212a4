"""Files and directories that appear whole or not at all, and belong to one process."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from tdreplay.errors import DirectoryInUseError, InvalidArgumentError, ResourceExhaustedError
from tdreplay.processes import OwnFile

__all__ = [
    "LOCK",
    "DirectoryLock",
    "boot_id",
    "check_name",
    "new_directory",
    "put_in_place",
    "remove",
    "remove_leftovers",
    "reserve",
    "sync_directory",
    "sync_tree",
    "take_away",
    "write_at",
]

LOCK = "LOCK"
NEW, OLD = ".new-", ".old-"
"""How the names of directories begin that are not in place yet, or not any more."""


class DirectoryLock:
    """Keeps a directory for this process, until it is closed or the process ends, however that ends, and whatever forks it leaves.

    Args:
        directory: it must be there.

    Raises:
        DirectoryInUseError: another process has it; the message names its pid.
    """

    def __init__(self, directory: Path) -> None:
        self._file = OwnFile(os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        try:
            fcntl.flock(self._file.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file.number, 20, 0).decode("ascii", "replace").strip()
            self.close()
            raise DirectoryInUseError(
                f"{directory} is in use by {f'process {holder}' if holder else 'another process'}: stop that one, or name another directory"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def sign(self) -> None:
        """Notes who has the directory, for whoever else wants it. Before that, nothing in it was changed."""
        os.ftruncate(self._file.number, 0)
        os.pwrite(self._file.number, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Gives the directory back. Closing twice is allowed."""
        self._file.close()


def check_name(name: str, what: str) -> str:
    """`name`, where it may be that of a directory.

    Raises:
        InvalidArgumentError: it may not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InvalidArgumentError(f"{what} {name[:80]!r}: a name must be 1 to 64 letters, digits, '_' or '-'")
    return name


def boot_id() -> str:
    """Which start of the machine this is; '' where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def reserve(file: int, size: int, directory: Path) -> None:
    """Gives an open file `size` bytes of the disk, so that writing to them cannot fail for want of space.

    Raises:
        ResourceExhaustedError: there are not so many left.
        OSError: the disk failed.
    """
    missing = size - os.fstat(file).st_blocks * 512
    free = shutil.disk_usage(directory).free
    if missing > free:
        raise ResourceExhaustedError(f"{missing} bytes are missing on the disk of {directory}, which has {free} left")
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceExhaustedError(f"{size} bytes cannot be had on the disk of {directory}: {error}") from error
        raise


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory beside `target`, to be filled and put in its place; it is removed where that does not happen."""
    _make(target.parent)
    scratch = target.with_name(f"{NEW}{target.name}-{os.getpid()}")
    remove(scratch)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        remove(scratch)


def _make(directory: Path) -> None:
    """Makes a directory, and those above it, on the disk."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def put_in_place(scratch: Path, target: Path) -> None:
    """Makes a full directory appear as `target`, on the disk, all of it at once. What was there is gone then."""
    sync_tree(scratch)
    if target.exists():
        exchange(scratch, target)
    else:
        scratch.rename(target)
    sync_directory(target.parent)


def take_away(target: Path) -> None:
    """Removes a directory; it is gone at once, all of it."""
    old = target.with_name(f"{OLD}{target.name}-{os.getpid()}")
    remove(old)
    target.rename(old)
    sync_directory(target.parent)
    remove(old)


def remove_leftovers(parent: Path) -> None:
    """Removes what a process that died left half made, or half removed."""
    for path in parent.glob(".*"):
        if path.name.startswith((NEW, OLD)):
            remove(path)


def remove(directory: Path) -> None:
    """Removes a directory, where it is there."""
    if directory.exists():
        shutil.rmtree(directory)


def sync_tree(directory: Path) -> None:
    """Returns when a directory and all that is in it is on the disk."""
    for path in directory.rglob("*"):
        sync_directory(path)
    sync_directory(directory)


def sync_directory(path: Path) -> None:
    """Returns when a directory's entries, or a file's bytes, are on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


AT_FDCWD, RENAME_EXCHANGE = -100, 2  # From Linux's fcntl.h and fs.h.


def exchange(one: Path, other: Path) -> None:
    """Lets two directories change places, at once: renameat2(2), of Linux.

    Raises:
        OSError: the file system cannot.
    """
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def write_at(file: int, data: memoryview, offset: int) -> None:
    """Writes all bytes of `data` from `offset` on.

    Raises:
        OSError: the disk is full, or failed.
    """
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
