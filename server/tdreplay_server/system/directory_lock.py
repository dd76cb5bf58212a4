"""The lock of a directory: one process at a time has the directory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from tdreplay.errors import DirectoryInUseError
from tdreplay.processes import OwnFile
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import FILE_MODE, open_file

__all__ = ["LOCK", "DirectoryLock"]

LOCK = "LOCK"
SIGNATURE_BYTES = 20


class DirectoryLock:
    """Keeps a directory for this process, until the lock is closed or the process ends, even if it is killed. Forks do not have the lock.

    Args:
        directory: the directory, which must be there.
        reading: whether this process only reads the directory. Then others may read it too. The lock's file must be there, and need not be writable.

    Raises:
        DirectoryInUseError: another process has the directory. The message names its pid.
        FailedPreconditionError: the lock is a link, or not a file.
        OSError: the lock cannot be opened.
    """

    def __init__(self, directory: Path, *, reading: bool = False) -> None:
        self._file = OwnFile(open_file(directory / LOCK, os.O_RDONLY if reading else os.O_RDWR | os.O_CREAT))
        try:
            fcntl.flock(self._file.number, (fcntl.LOCK_SH if reading else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file.number, SIGNATURE_BYTES, 0).decode("ascii", "replace").strip()
            self.close()
            raise DirectoryInUseError(
                f"{directory} is in use by {f'process {holder}' if holder else 'another process'}: stop that one, or name another directory"
            ) from None
        if not self._is_of(directory):
            self.close()
            raise DirectoryInUseError(f"{directory} was replaced or removed by another process meanwhile: open it again")

    def _is_of(self, directory: Path) -> bool:
        """Whether others would lock the same file: somebody may have replaced it before it was locked."""
        try:
            there = (directory / LOCK).lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._file.number), there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def sign(self) -> None:
        """Writes the pid into the lock, for the message to whoever else wants the directory, and keeps other users from locking it.

        The first change that a process makes to the directory: it calls this when it has found that the directory is one it can use.
        """
        with suppress(PermissionError):  # It is another user's.
            os.fchmod(self._file.number, FILE_MODE)
        try:
            os.pwrite(self._file.number, f"{os.getpid()}\n".ljust(SIGNATURE_BYTES).encode(), 0)
        except OSError as error:
            log.warning("the lock does not say whose it is", error=str(error))

    def close(self) -> None:
        """Gives the directory back. Closing twice is allowed."""
        self._file.close()
