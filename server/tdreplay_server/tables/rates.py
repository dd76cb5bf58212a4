"""How fast rows come and go."""

from __future__ import annotations

import threading
import time

__all__ = ["WINDOW_SECONDS", "RowRate"]

WINDOW_SECONDS = 10
"""How far a rate looks back, in whole seconds; the second that runs comes on top."""


class RowRate:
    """Counts rows, all of them and those of the last seconds. All methods may be called from several threads.

    The rows of each second have a place of their own, which a later second takes over.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._counting = threading.Lock()
        self._total = 0
        self._rows = [0] * (WINDOW_SECONDS + 1)
        self._seconds = [0] * (WINDOW_SECONDS + 1)

    @property
    def total(self) -> int:
        """The rows since this object was made."""
        return self._total

    def add(self, rows: int) -> None:
        """Counts so many rows, now."""
        second = int(time.monotonic())
        place = second % len(self._rows)
        with self._counting:
            self._total += rows
            if self._seconds[place] != second:
                self._seconds[place], self._rows[place] = second, 0
            self._rows[place] += rows

    def now(self) -> float:
        """Rows a second, over the last `WINDOW_SECONDS` seconds, or since this object was made, but over one second at least."""
        now = time.monotonic()
        oldest = int(now) - WINDOW_SECONDS
        with self._counting:
            rows = sum(rows for rows, second in zip(self._rows, self._seconds, strict=True) if second >= oldest)
        return rows / max(1.0, now - max(self._began, oldest))
