"""How fast rows come and go."""

from __future__ import annotations

import threading
import time
from collections import deque

__all__ = ["WINDOW_SECONDS", "RowRate"]

WINDOW_SECONDS = 10
"""How far a rate looks back, in whole seconds; the second that runs comes on top."""


class RowRate:
    """Counts rows, all of them and those of the last seconds. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._counting = threading.Lock()
        self._total = 0
        self._next = 0.0
        self._marks: deque[tuple[int, int]] = deque(maxlen=WINDOW_SECONDS + 1)  # A second in which rows were counted, and the rows before it.

    @property
    def total(self) -> int:
        """The rows since this object was made."""
        return self._total

    def add(self, rows: int) -> None:
        """Counts so many rows, now. It is called for every message of batches: it costs one look at the clock."""
        now = time.monotonic()
        with self._counting:
            if now >= self._next:
                self._begin(int(now))
            self._total += rows

    def _begin(self, second: int) -> None:
        self._marks.append((second, self._total))
        self._next = second + 1.0

    def now(self) -> float:
        """Rows a second, over the last `WINDOW_SECONDS` seconds, or since this object was made, but over one second at least."""
        now = time.monotonic()
        oldest = int(now) - WINDOW_SECONDS
        with self._counting:
            before = next((rows for second, rows in self._marks if second >= oldest), self._total)
            return (self._total - before) / max(1.0, now - max(self._began, oldest))
