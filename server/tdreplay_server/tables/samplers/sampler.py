"""What every sampler does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds

__all__ = ["Draw", "Sampler", "Totals"]


class Totals(NamedTuple):
    """Of what batches are drawn at one moment.

    Attributes:
        rows: The rows that can be drawn.
        mass: The sum of their weights: a row's probability is its part of it. Where rows have no weights of their own, each weighs 1.
        least: The least of the weights above 0; 0: there is none.
    """

    rows: int
    mass: float
    least: float

    @classmethod
    def of(cls, rows: int) -> Totals:
        """So many rows that weigh 1 each."""
        return cls(rows, float(rows), 1.0 if rows else 0.0)


class Draw(NamedTuple):
    """The rows of one or more batches.

    Attributes:
        ids: Their row ids, batch after batch, in the order of each batch: int64 of shape [n]. The caller owns the array.
        probabilities: How probable each row was: float64 of shape [n]. None: all rows were equally probable.
        priorities: The priority of each row, raw: float64 of shape [n]. None: the sampler has no priorities.
        size: The number of rows among which was drawn; 0: they were not counted.
        min_probability: The smallest probability above 0 that a row had; 0: it is not known.
        mass: The sum of the weights of those among which was drawn; None: each of them weighs 1. 0: all have the priority 0.
    """

    ids: RowIds
    probabilities: npt.NDArray[np.float64] | None
    priorities: Priorities | None
    size: int
    min_probability: float
    mass: float | None = None

    @property
    def totals(self) -> Totals:
        """Among what was drawn."""
        return Totals.of(self.size) if self.mass is None else Totals(self.size, self.mass, self.min_probability * self.mass)


class Sampler(Protocol):
    """Chooses the rows of batches. Each table has one of its own.

    `opened`, `written`, `inserted` and `evicted` come from the row log, under the table's exclusive lock: nobody draws meanwhile. `draw`, `totals`,
    `update`, `priorities`, `withhold` and `offer` come under its shared lock, from several threads at once. A sampler whose draws or updates share a
    state has a lock.

    Attributes:
        columns: What is kept of each slot; never changes.
        values: What is kept of the table; never changes.
    """

    columns: Sequence[SlotColumn]
    values: Sequence[StateValue]

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """From now on this is the state of the table, of so many slots. No row is live until `inserted` comes."""

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """The rows of these ids lie in their slots, and are about to be committed. If they are more than the slots, the last ones stay.

        What is written into the state here is of one moment with the rows. `priorities`: what the writer gave; None: the sampler says.
        """

    def inserted(self, ids: range) -> None:
        """The rows of these ids are live from now on. They were written, now or before the table was opened."""

    def evicted(self, ids: range) -> None:
        """The rows of these ids are not live any more."""

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """One batch of `rows` rows for each generator, each drawn with its generator alone. At least one row can be drawn.

        The same rows and generators in the same state give the same batches, however many are drawn at once.
        """

    def totals(self, ring: Ring) -> Totals:
        """Among what a batch would be drawn now. There may be no row."""

    def check(self, priorities: Priorities) -> None:
        """Passes where rows can have these priorities, which are finite, from 0 up.

        Raises:
            InvalidArgumentError: the sampler cannot work with one of them.
        """

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """Gives rows other priorities, and says how many of the ids were live. Of equal ids the last one counts.

        It is called only where the sampler has priorities.

        Raises:
            InvalidArgumentError: as `check`. No priority changes.
        """

    def priorities(self, ids: RowIds) -> Priorities:
        """The priorities that these live rows have now, raw. The caller owns the array. It is called only where the sampler has priorities."""

    def withhold(self, ids: RowIds) -> None:
        """These live rows are not to be drawn until they are offered again."""

    def offer(self, ids: RowIds) -> None:
        """These live rows can be drawn again."""
