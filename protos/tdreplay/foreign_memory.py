"""Memory that two processes share: made by one, and opened by the other.

The other end names its memory by a path, and may name any. So nothing is opened here but what can only be such memory. That is one of two things. A
file without a name, sealed by the process that made it: no file that somebody keeps is like that, and it cannot shrink under its reader. Or, at a
client, a file in the folder that this process was told it shares with servers; there the folder is the one that this process knows, and not the
server's path. Either must be this user's.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from functools import lru_cache
from pathlib import Path

__all__ = ["FOLDER", "NONCE_BYTES", "anonymous_memory", "open_anonymous", "open_memory"]

FOLDER = "TDREPLAY_SHARED_MEMORY_DIR"
"""The environment variable that names the folder. Servers read it too."""
NONCE_BYTES = 16
ANONYMOUS = re.compile(r"/proc/[0-9]{1,10}/fd/[0-9]{1,10}")
NAME = "tdreplay"
ANONYMOUS_NAME = f"/memfd:{NAME} (deleted)"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
NAMED = re.compile(r"tdreplay-[A-Za-z0-9_]{1,64}\.slots")


def anonymous_memory(size: int) -> tuple[int, str]:
    """New memory: a file that has no name, whose size cannot be changed, and the path under which processes of this user can open it.

    Raises:
        OSError: it cannot be had.
    """
    file = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(file, 0, size)  # Now: memory that runs out later would be a SIGBUS.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(file)
        raise
    return file, f"/proc/{os.getpid()}/fd/{file}"


def open_anonymous(path: str, size: int, nonce: bytes) -> int:
    """As `open_memory`, of memory without a name alone: for a server, whose folder is not its clients' business."""
    if not ANONYMOUS.fullmatch(path):
        raise OSError(f"{path[:200]!r} is not memory without a name")
    return open_memory(path, size, nonce)


def open_memory(path: str, size: int, nonce: bytes) -> int:
    """The descriptor of the file at `path`, open for reading and writing.

    Args:
        path: the path that the other end names.
        size: the size in bytes that the file must have.
        nonce: the first bytes that it must have.

    Raises:
        OSError: it cannot be opened from here, or is none of these: the other end runs as another user, in another container, or on another host.
    """
    shown, anonymous = f"{path[:200]!r}", ANONYMOUS.fullmatch(path) is not None
    found = os.open(path, os.O_PATH | os.O_CLOEXEC) if anonymous else _found_in_folder(Path(path).name, shown)
    try:
        if not (_is_private_file(found) and (_has_no_name(found) if anonymous else _has_one_name(found))):
            raise OSError(f"{shown} is not memory that a process of this user shares")
        if os.fstat(found).st_size != size:
            raise OSError(f"{shown} has {os.fstat(found).st_size} bytes, not {size}")
        file = os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        if anonymous and not _is_sealed(file):
            raise OSError(f"{shown} is not sealed")
        if os.pread(file, len(nonce), 0) != nonce:
            raise OSError(f"{shown} is not the memory that was offered: it begins with another nonce")
    except BaseException:
        os.close(file)
        raise
    return file


# O_PATH: a file is looked at before it is opened, because to open a device or a pipe may do something. Then it is opened by its descriptor, so that
# nobody can put another file in its place meanwhile.


def _found_in_folder(name: str, shown: str) -> int:
    folder = os.environ.get(FOLDER)
    if not folder:
        raise OSError(f"{shown} has a name, and {FOLDER} names no folder that this process shares with servers")
    if not NAMED.fullmatch(name):
        raise OSError(f"{shown} is not named as a server's memory is")
    directory = os.open(Path(folder).expanduser(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _is_private_file(found: int) -> bool:
    status = os.fstat(found)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _has_no_name(found: int) -> bool:
    status = os.fstat(found)
    return status.st_nlink == 0 and status.st_dev == _device() and os.readlink(f"/proc/self/fd/{found}") == ANONYMOUS_NAME


@lru_cache(maxsize=1)
def _device() -> int:
    """Where the kernel keeps anonymous files of normal pages. Those of huge pages, which a write may find missing (SIGBUS), it keeps elsewhere."""
    file = os.memfd_create(NAME, os.MFD_CLOEXEC)
    try:
        return os.fstat(file).st_dev
    finally:
        os.close(file)


def _has_one_name(found: int) -> bool:
    status = os.fstat(found)
    return status.st_nlink == 1 and stat.S_IMODE(status.st_mode) == 0o600


def _is_sealed(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GET_SEALS) & SEALS == SEALS
