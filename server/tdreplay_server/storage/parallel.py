"""Large copies by several threads, for callers that wait for the copy and leave the other cores idle.

The buffer in process copies like this, and so does the server into shared memory, whose client gets the batch without a copy. Batches that go over
gRPC are copied in the thread of their call: the calls share the cores.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

__all__ = ["in_parts"]

PART_BYTES = 1 << 20
"""Smaller parts are not worth a thread."""
MOST_THREADS = 8


class _Pool:
    """The threads that help, made when they are first needed. They do not survive a fork, so a child makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = 0
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    @property
    def threads(self) -> int:
        """How many work at once, the caller's among them."""
        return self._threads

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._executor = ThreadPoolExecutor(max(1, self._threads - 1), thread_name_prefix="tdreplay-copy")
        return self._executor


_pool = _Pool()
os.register_at_fork(after_in_child=lambda: setattr(_pool, "_lock", threading.Lock()))


def in_parts(rows: int, row_bytes: int, act: Callable[[int, int], object]) -> None:
    """Calls act(start, stop) for ranges that together are ``range(rows)``, in several threads at once where the rows are large, and waits for all.

    Args:
        rows: how many there are.
        row_bytes: bytes that each of them has.
        act: works on the rows from start to stop, and must release the interpreter's lock to gain by this.
    """
    parts = max(1, min(_pool.threads, rows * row_bytes // PART_BYTES, rows))
    bounds = [rows * part // parts for part in range(parts + 1)]
    others = [_pool.executor().submit(act, start, stop) for start, stop in itertools.pairwise(bounds[1:])]
    try:
        act(0, bounds[1])
    finally:
        wait(others)
    for other in others:
        other.result()
