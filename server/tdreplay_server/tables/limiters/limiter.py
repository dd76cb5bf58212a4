"""What every rate limiter does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tdreplay_server.durability.slot_state import SlotState, StateValue
from tdreplay_server.storage.ring import Ring

__all__ = ["AT_ONCE", "NO_DEADLINE", "RateLimiter", "Wait", "WaitState"]

NO_DEADLINE = math.inf
"""An `until` that never comes."""


class Wait(NamedTuple):
    """How long somebody may wait.

    Attributes:
        until: A time of `time.monotonic`.
        wanted: Whether somebody is still there to be answered. A waiter looks now and then.
    """

    until: float
    wanted: Callable[[], bool] = lambda: True


AT_ONCE = Wait(0.0)
"""Not at all."""


class WaitState(NamedTuple):
    """How one side waits for the other.

    Attributes:
        waiting: How many wait now.
        seconds: How long all of them have waited until now, those that wait now included.
        waits_for: What the one that waits longest waits for, in words; '' where none waits.
    """

    waiting: int = 0
    seconds: float = 0.0
    waits_for: str = ""


class RateLimiter(Protocol):
    """Decides who waits: writers that are far ahead of the readers, or readers that are far ahead of the writers. Each table has one of its own.

    The table calls `inserting` and `sampling` outside every lock of its own, from several threads at once.

    Attributes:
        values: What is kept of the table; never changes.
    """

    values: Sequence[StateValue]

    def opened(self, state: SlotState, ring: Ring) -> None:
        """From now on this is the state of the table. Where it is new, the limiter begins anew."""

    def sized(self, size: int) -> None:
        """The table has so many rows that can be drawn. It comes under the table's exclusive lock, and does not wait."""

    def inserting(self, rows: int, wait: Wait) -> AbstractContextManager[object]:
        """For ``with``: waits until so many rows may be inserted. They count when the block ends without an error.

        Raises:
            RateLimitedError: they may not, within the time.
            InvalidArgumentError: they never may.
        """

    def sampling(self, rows: int, batches: int, wait: Wait) -> int:
        """Waits until one batch of `rows` rows may be drawn at least, reserves up to `batches` of them, and says how many.

        Raises:
            RateLimitedError: none may, within the time.
            InvalidArgumentError: none ever may.
        """

    def taken(self, rows: int) -> None:
        """A reserved batch of so many rows was taken by a learner: it counts as drawn."""

    def given_back(self, rows: int) -> None:
        """A reserved batch of so many rows was not taken."""

    def waits(self) -> tuple[WaitState, WaitState]:
        """How inserts wait, and how batches wait."""
