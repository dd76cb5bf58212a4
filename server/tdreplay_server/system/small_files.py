"""Small files that an operator replaces while the server runs: certificates, keys, tokens."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["opened_at_once"]


@contextmanager
def opened_at_once(path: Path) -> Iterator[IO[bytes]]:
    """For ``with``: a file to read. It does not wait, as opening a pipe would.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
