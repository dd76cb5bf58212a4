"""Rows that are in their files and not in memory: found out as they are touched, and then read all at once.

A page of a mapped file that is not in memory is read when it is touched, in the thread that touches it, one after the other; and the kernel reads
what lies around it too (`read_ahead_kb`: 128 KiB as a rule, 8 MiB on some machines), which is good for files that are read from one end to the
other, and bad for random rows. Asked for beforehand (posix_fadvise(2), POSIX_FADV_WILLNEED), the pages of a batch are read side by side, and nothing
but these.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import numpy as np

from tdreplay.memory import Rows
from tdreplay_server.storage.ring import Slots
from tdreplay_server.system.disk import write_at

__all__ = ["LARGE_BYTES", "PAGE_BYTES", "FileRows", "blocks_read", "page_runs"]

PAGE_BYTES = resource.getpagesize()
LARGE_BYTES = 64 << 10
"""Less is copied into the mapping in any case: a system call costs more than it may save."""


class FileRows:
    """The rows of a field in the file that is mapped.

    Args:
        file: open for writing.
        mapped: the same rows, in memory.
    """

    def __init__(self, file: int, mapped: Rows) -> None:
        self._file, self._mapped = file, mapped

    def __setitem__(self, slots: slice, rows: Rows) -> None:
        """Writes rows to the slots of a slice, as an assignment to the mapped rows does; large blocks without reading what they overwrite.

        Raises:
            OSError: the disk failed.
        """
        if rows.nbytes < LARGE_BYTES:
            self._mapped[slots] = rows
        else:
            write_at(self._file, np.ascontiguousarray(rows).view(np.uint8).data, slots.start * self._mapped.itemsize)

    def ask_for(self, slots: Slots) -> None:
        """Has the kernel begin to read the rows in `slots`, one at the least, where they are not in memory. Does not wait for them."""
        for offset, size in page_runs(slots, self._mapped.itemsize):
            os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_WILLNEED)


def blocks_read() -> int:
    """How much this thread had to read from disks so far, in blocks (getrusage(2), RUSAGE_THREAD)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def page_runs(slots: Slots, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of the runs of whole pages in which the rows in `slots` lie, ascending and apart."""
    starts = np.sort(slots) * row_bytes
    first, last = starts // PAGE_BYTES, (starts + (row_bytes - 1)) // PAGE_BYTES
    ends = np.flatnonzero(first[1:] > last[:-1] + 1)  # Rows have one size, so the last pages ascend as the first ones do.
    for begin, end in zip(first[np.r_[0, ends + 1]].tolist(), last[np.r_[ends, -1]].tolist(), strict=True):
        yield begin * PAGE_BYTES, (end - begin + 1) * PAGE_BYTES
