"""A wait for rows: how often is looked, and how it ends. Whoever waits sleeps: a thread, or a task of asyncio."""

from __future__ import annotations

import time
from typing import SupportsFloat, SupportsIndex

from tdreplay.errors import InvalidArgumentError, RateLimitedError
from tdreplay.limits import check_seconds, check_whole
from tdreplay.state import State

__all__ = ["RowWait"]

FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25
"""The pause in seconds between two looks for rows: the first one, and the longest to which it grows."""


class RowWait:
    """A wait until a buffer holds so many rows.

    Args:
        rows: how many.
        timeout: the most seconds that it takes; None or inf: without a limit.

    Raises:
        InvalidArgumentError: an argument is out of its range.
    """

    def __init__(self, rows: SupportsIndex, timeout: SupportsFloat | None) -> None:
        self._rows = check_whole(rows, "rows", 1)
        self._until, self._pause = time.monotonic() + check_seconds(timeout, "timeout"), FIRST_PAUSE

    def pause(self, state: State) -> float:
        """Seconds until the next look, when the buffer is in this state; 0: the rows are there.

        Raises:
            RateLimitedError: the time is over; the message says how many rows are there.
            InvalidArgumentError: the buffer never holds so many rows.
        """
        if state.size >= self._rows:
            return 0.0
        if self._rows > state.buffer_size:
            raise InvalidArgumentError(f"rows ({self._rows}) must be at most {state.buffer_size}: the buffer never holds more")
        left = self._until - time.monotonic()
        if left <= 0:
            raise RateLimitedError(f"waiting for {self._rows} rows, {state.size} are there")
        pause, self._pause = min(self._pause, left), min(2 * self._pause, LONGEST_PAUSE)
        return pause
