"""Directories that appear whole or not at all, and the space that a disk has for them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from tdreplay.errors import InvalidArgumentError, ResourceExhaustedError
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import check_directory, make_directories, make_directory, sync

__all__ = [
    "boot_id",
    "check_name",
    "check_room",
    "discard",
    "is_name",
    "new_directory",
    "put_in_place",
    "put_new",
    "remove_leftovers",
    "reserve",
    "sync_tree",
    "take_away",
    "write_at",
]

NEW, OLD = ".new-", ".old-"
"""Prefixes of the names of directories: of one that is not in place yet, and of one that is not in place any more."""
SPARE_SHARE, SPARE_BYTES = 20, 1 << 30
"""A twentieth of a disk, or 1 GiB where that is less, stays free for small tables, journals and checkpoints. A table that is larger than that
may not take it."""


def is_name(name: str) -> bool:
    """Whether a table or a checkpoint may have that name. Its directory has the same name."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def check_name(name: str, what: str) -> str:
    """`name`, where a table or a checkpoint may have it.

    Raises:
        InvalidArgumentError: it may not.
    """
    if not is_name(name):
        raise InvalidArgumentError(f"{what} {name[:80]!r}: a name must be 1 to 64 letters, digits, '_' or '-'")
    return name


@lru_cache
def boot_id() -> str:
    """A text that is another one each time the machine starts; '' where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def check_room(size: int, directory: Path) -> None:
    """Passes where a table may take `size` bytes of the disk of `directory`. A large table must leave some for the others.

    Raises:
        ResourceExhaustedError: the disk has too few left.
    """
    disk = shutil.disk_usage(directory)
    spare = min(disk.total // SPARE_SHARE, SPARE_BYTES)
    if size + (spare if size > spare else 0) > disk.free:
        raise ResourceExhaustedError(f"the disk of {directory} has {disk.free} bytes left, of which {spare} are kept for small tables and journals")


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
    os.posix_fallocate(file, 0, size)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, with a name that no other has, to be filled and put in place. What is at its name afterwards is removed."""
    check_directory(target)
    make_directories(target.parent)
    scratch = _beside(target, NEW)
    make_directory(scratch)
    try:
        yield scratch
    finally:
        discard(scratch)


def _beside(target: Path, prefix: str) -> Path:
    return target.with_name(f"{prefix}{target.name}-{secrets.token_hex(8)}")


def put_in_place(scratch: Path, target: Path) -> None:
    """Makes a full directory appear as `target`, on the disk, all of it at once. What was at `target` is at `scratch` then."""
    while True:
        with suppress(FileExistsError):
            return put_new(scratch, target)
        with suppress(FileNotFoundError):  # Somebody took it away meanwhile.
            exchange(scratch, target)
            return sync(target.parent)


def put_new(scratch: Path, target: Path) -> None:
    """Makes a full directory appear as `target`, on the disk, all of it at once.

    Raises:
        FileExistsError: there is one already.
    """
    sync_tree(scratch)
    try:
        scratch.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise
    sync(target.parent)


def take_away(target: Path) -> Path:
    """Renames a directory, at once, so that its name is free. Gives the new name, by which `remove_leftovers` knows what to remove."""
    old = _beside(target, OLD)
    target.rename(old)
    try:
        sync(target.parent)
    except OSError as error:
        log.warning("a directory was taken away, and may be there again after a loss of power", directory=str(target), error=str(error))
    return old


def remove_leftovers(parent: Path) -> None:
    """Removes what a process left half made, or half removed, when it died."""
    for path in parent.glob(".*"):
        if path.name.startswith((NEW, OLD)):
            discard(path)


def discard(directory: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Removes a directory, if there is one. What cannot be removed, or is left when `stopped` says so, stays for `remove_leftovers`."""
    try:
        for parent, directories, files in os.walk(directory, topdown=False):
            for name in files:
                if stopped():
                    return
                _unlink(Path(parent, name))
            for name in directories:
                _unlink(Path(parent, name))
        _unlink(directory)
    except OSError as error:
        log.warning("a directory cannot be removed", directory=str(directory), error=str(error))


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def sync_tree(directory: Path) -> None:
    """Returns when a directory and all that is in it is on the disk."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


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
