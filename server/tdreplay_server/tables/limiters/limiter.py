"""What every rate limiter does."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["NO_DEADLINE", "RateLimiter"]

NO_DEADLINE = math.inf
"""An `until` that never comes."""


class RateLimiter(Protocol):
    """Decides who waits: writers that are far ahead of the readers, or readers that are far ahead of the writers. Each table has one of its own.

    The table enters both contexts outside every lock of its own, from several threads at once. What happens in them counts when they end without
    an error. `until` is a time of `time.monotonic`; a limiter that has to wait for longer raises DeadlineExceededError.
    """

    def inserting(self, rows: int, until: float) -> AbstractContextManager[object]:
        """For ``with``: waits until so many rows may be inserted."""

    def sampling(self, items: int, until: float) -> AbstractContextManager[object]:
        """For ``with``: waits until so many rows may be drawn."""
