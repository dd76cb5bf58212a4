"""What every rate limiter does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tdreplay_server.durability.slot_state import SlotState, StateValue
from tdreplay_server.storage.ring import Ring

__all__ = ["ANY_NUMBER", "AT_ONCE", "FOR_EVER", "RateLimiter", "Reserved", "Supply", "Wait", "WaitState"]

ANY_NUMBER = 1 << 62
"""So many draws are left in a table whose rows can be drawn any number of times."""


def _always() -> bool:
    return True


class Wait(NamedTuple):
    """How long a call may wait.

    Attributes:
        until: A time of `time.monotonic`.
        wanted: False: nobody wants what the call would give any more, as its client is gone. It is asked every quarter of a second while the call
            waits, from the thread of another call too. It must be quick, and raise nothing.
    """

    until: float
    wanted: Callable[[], bool] = _always


AT_ONCE = Wait(0.0)
"""Not at all."""

FOR_EVER = Wait(math.inf)
"""The wait of a call that has no deadline."""


class Supply(NamedTuple):
    """What a table has to give, at one moment.

    Attributes:
        inserted: The rows that were ever inserted: `Ring.insert_count`.
        size: The rows that are there: those that are live, without those that were drawn as often as a row may be.
        free: The slots in which no live row lies.
        draws: How often the rows can still be drawn, together. It includes the draws that are leased, those of rows that were evicted since too.
    """

    inserted: int
    size: int
    free: int
    draws: int = ANY_NUMBER

    @classmethod
    def of(cls, ring: Ring) -> Supply:
        """That of a table whose rows can be drawn any number of times."""
        return cls(ring.insert_count, ring.size, ring.buffer_size - ring.size)


class Reserved(NamedTuple):
    """Batches that may be drawn. Each is to be taken or given back, once.

    Attributes:
        batches: The number of batches.
        rows: The rows of each.
        generation: Which rows of the table they are about. After a reset the batches of the rows before count for nothing.
    """

    batches: int
    rows: int
    generation: int


class WaitState(NamedTuple):
    """How one side of a table waits for the other.

    Attributes:
        waiting: The calls that wait now.
        seconds: How long calls have waited, in seconds: all of them together, those that wait now included.
        waits_for: What the call that waits longest waits for, in words; '': none waits.
    """

    waiting: int = 0
    seconds: float = 0.0
    waits_for: str = ""


class RateLimiter(Protocol):
    """Decides who waits: writers that are far ahead of the readers, or readers that are far ahead of the writers. Each table has one of its own.

    `inserting` and `sampling` wait. They come outside every lock of the table, from several threads at once. The other methods never wait for long,
    and come at any time. `opened`, `emptied` and `changed` also come while the table's lock is held alone.

    Who waits longest on a side goes first: nobody overtakes, and who is let in is woken alone. An insert that is known already is nothing that a
    limiter is asked about: it stores nothing, so it always passes.

    A limiter counts the rows that were taken, and keeps the number. How many rows were inserted it asks the table, so the two are of one moment with
    the rows, also after a kill.

    Attributes:
        values: What is kept for the limiter. It never changes.
    """

    values: Sequence[StateValue]

    def opened(self, state: SlotState, ring: Ring) -> None:
        """As `RowListener.opened`: the counts go on as `state` has them. A new generation counts from zero."""

    def emptied(self, ring: Ring) -> None:
        """As `RowListener.emptied`: the counts begin at zero, and what is reserved counts for nothing."""

    def changed(self) -> None:
        """The table has something else to give: rows were inserted or evicted, taken or given back. To be called after each of these."""

    def closed(self) -> None:
        """The table is closed or dropped: who waits passes at once, and finds that out. So does who comes later."""

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted, nor for what it was about to do."""

    def inserting(self, rows: int, wait: Wait) -> AbstractContextManager[object]:
        """For ``with``: waits until so many rows may be inserted. Until the block ends they count as inserted; from then on the table says it.

        Raises:
            InvalidArgumentError: so many rows at once could never be inserted. The message says how many can, or what would let them in.
            RateLimitedError: they could not be inserted before `wait.until`. The message says what was missing.
            CancelledError: nobody wants them inserted any more.
        """

    def sampling(self, rows: int, batches: int, wait: Wait) -> AbstractContextManager[Reserved]:
        """For ``with``: waits until a batch of so many rows may be drawn, and reserves up to `batches` of them.

        If the block ends with an error, they are given back. Else each batch is to be taken or given back later.

        Raises:
            InvalidArgumentError: such a batch could never be drawn. The message says how many rows can be, or what would let it be.
            RateLimitedError: it could not be drawn before `wait.until`. The message says what was missing.
            CancelledError: nobody wants it any more.
        """

    def taken(self, reserved: Reserved, batches: int = 1) -> None:
        """The learner took so many of the batches: their rows count as drawn from now on."""

    def given_back(self, reserved: Reserved, batches: int = 1) -> None:
        """So many of the batches were not taken, and will not be."""

    def insert_room(self) -> int | None:
        """How many rows could be inserted now without waiting; None: any number."""

    def promised(self, reserved: Reserved, batches: int = 1) -> None:
        """So many of the batches make room for inserts now, though they are not taken yet. Below 0: so many make none any more."""

    @property
    def rows_taken(self) -> int:
        """The rows that learners took since the table was empty."""

    @property
    def rows_reserved(self) -> int:
        """The rows of batches that are reserved: neither taken nor given back yet."""

    def waits(self) -> tuple[WaitState, WaitState]:
        """How inserts wait, and how batches do."""
