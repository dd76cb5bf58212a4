"""Counters that any thread may add to and read. They know nothing of who reads them."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DISK_SECONDS", "Ages", "Counted", "Distribution", "Total"]

DISK_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Bounds of distributions of what a disk takes, in seconds."""
AGE_ROWS = tuple(4.0**power for power in range(1, 16))
"""Bounds of distributions of ages, in rows."""


class Total:
    """A sum of whole numbers that only grows."""

    __slots__ = ("_adding", "value")

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self.value = 0

    def add(self, number: int) -> None:
        """Adds a number, from 0 up."""
        with self._adding:
            self.value += number


class Counted(NamedTuple):
    """What a distribution has counted.

    Attributes:
        bounds: The upper bounds of its ranges, but for the last range, which has none.
        counts: How many values were in each range; one more than there are bounds.
        sum: The sum of all values.
    """

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float

    @property
    def number(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Distribution:
    """Counts values in ranges. A value that is a bound counts to the range below it.

    Args:
        bounds: The upper bounds of the ranges, ascending.
    """

    __slots__ = ("_bounds", "_counting", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = DISK_SECONDS) -> None:
        self._bounds = bounds
        self._counting = threading.RLock()  # A garbage collection inside of it may count something, in the same thread.
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        place = bisect_left(self._bounds, value)
        with self._counting:
            self._counts[place] += 1
            self._sum += value

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the seconds that the block takes, also where it ends with an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def read(self) -> Counted:
        """What was counted so far."""
        with self._counting:
            return Counted(self._bounds, tuple(self._counts), self._sum)


class Ages(Distribution):
    """How old the rows of batches are: how many rows were inserted after them.

    It looks at one row of each draw, at another place each time: a sampler may draw the rows of a batch in an order. Over many
    batches every place counts as often as any other, so the distribution is that of all rows. To look at all of them costs a tenth of a small batch.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        super().__init__(AGE_ROWS)
        self._next = 0

    def look(self, ids: npt.NDArray[np.int64], write_count: int) -> None:
        """Counts the age of one of these rows, if there is one, where `write_count` is the id of the next row."""
        rows = len(ids)
        if rows:
            self._next = place = (self._next + 1) % rows
            self.add(write_count - 1 - int(ids[place]))
