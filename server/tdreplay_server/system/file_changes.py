"""Whether files are still those that were read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["Signature", "signature_of"]

Signature = tuple[tuple[int, ...], ...]
"""What changes with a file: its inode, size, and the times of its last changes. Of a file that is not there: nothing."""


def signature_of(paths: Iterable[Path]) -> Signature:
    """The signature of some files, each followed where it is a link. It reads none of them."""
    return tuple(map(_one, paths))


def _one(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
