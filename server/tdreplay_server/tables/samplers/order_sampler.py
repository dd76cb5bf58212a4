"""What samplers share that take the rows in the order in which they came, from one end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.samplers.drawable_rows import DrawableRows
from tdreplay_server.tables.samplers.sampler import Draw, Totals

__all__ = ["OrderSampler", "windows"]

SCANNED = 1024


class OrderSampler(ABC):
    """A batch takes the first rows, in order, that may be drawn: each once before any again. The next batch takes the same ones, if none is withheld.

    It remembers where the first row was, so that it does not pass again and again over rows that are withheld. The mutex is for that.
    """

    columns: Sequence[SlotColumn] = ()
    values: Sequence[StateValue] = ()

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._start(1)

    @abstractmethod
    def _in_order(self, rows: int) -> Iterator[RowIds]:
        """The ids of the rows that may be drawn, in order, about `rows` at a time."""

    @abstractmethod
    def _note_first(self, row_id: int) -> None:
        """Whatever is before this row cannot be drawn."""

    @abstractmethod
    def _note_offered(self, ids: RowIds) -> None:
        """These rows, of which there is at least one, can be drawn again."""

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Forgets the rows."""
        self._start(buffer_size)

    def _start(self, buffer_size: int) -> None:
        self._rows = DrawableRows(buffer_size)

    def written(self, ids: range, priorities: Priorities | None) -> None:  # noqa: B027 - there is nothing to note, in no subclass.
        """Nothing to note."""

    def inserted(self, ids: range) -> None:
        """Notes the rows."""
        self._rows.inserted(ids)

    def evicted(self, ids: range) -> None:
        """Notes that the rows are gone."""
        self._rows.evicted(ids)

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`. All batches have the same rows.

        Raises:
            EmptyTableError: no row can be drawn.
        """
        with self._mutex:
            size = self._rows.check_any()
            batch = self._first(min(rows, size))
        return Draw(np.tile(np.resize(batch, rows), len(generators)), None, None, size, 1 / size)

    def totals(self, ring: Ring) -> Totals:
        """As `Sampler.totals`."""
        return Totals.of(self._rows.size)

    def _first(self, rows: int) -> RowIds:
        found: list[RowIds] = []
        for ids in self._in_order(rows):
            found.append(ids[: rows - sum(map(len, found))])
            if sum(map(len, found)) == rows:
                break
        batch = np.concatenate(found)
        self._note_first(int(batch[0]))
        return batch

    def check(self, priorities: Priorities) -> None:  # noqa: B027 - as `written`.
        """No row has a priority."""

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """No row has a priority."""
        return 0

    def priorities(self, ids: RowIds) -> Priorities:
        """No row has a priority."""
        return np.zeros(len(ids))

    def withhold(self, ids: RowIds) -> None:
        """As `Sampler.withhold`."""
        with self._changing():
            self._rows.withhold(ids)

    def offer(self, ids: RowIds) -> None:
        """As `Sampler.offer`."""
        with self._changing():
            if len(ids):
                self._note_offered(ids)
            self._rows.offer(ids)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the mutex while it is noted which rows are withheld, and sees to it that their number is right after an interrupt (Ctrl-C)."""
        with self._mutex:
            try:
                yield
            except BaseException:
                self._rows.count_withheld()
                raise


def windows(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) that cover `most` rows, each twice as long as the one before. The first has `rows` rows, or some more."""
    start, length = 0, max(rows, SCANNED)
    while start < most:
        yield start, min(start + length, most)
        start, length = start + length, 2 * length
