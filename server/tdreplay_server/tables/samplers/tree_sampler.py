"""What samplers share that keep a tree over the slots: a leaf for each row that may be drawn."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.tables.samplers.drawable_rows import DrawableRows
from tdreplay_server.tables.samplers.sampler import Totals

__all__ = ["LeafTree", "TreeSampler"]

MAX_PENDING = 1 << 16
"""So many rows at most are left to the next draw, which takes some milliseconds for them."""


class LeafTree(Protocol):
    """A tree whose nodes are computed from its leaves."""

    @property
    def EMPTY(self) -> float:  # noqa: N802 - a constant of the class.
        """What the leaf of a row is that is not to be drawn."""

    def write(self, leaves: Slots, values: npt.NDArray[Any] | float) -> None:
        """Gives leaves, in any order, their values. The last one of several of a leaf counts."""

    def write_range(self, start: int, stop: int, values: npt.NDArray[Any] | float) -> None:
        """Gives the leaves from start to stop their values."""


T = TypeVar("T", bound=LeafTree)


class TreeSampler(ABC, Generic[T]):
    """Keeps a tree with the leaves of the rows that may be drawn.

    Rows that come and go are noted, and the tree follows when it is needed: then many inserts are one write of a long range, and a row that
    overwrites another one is written once. So a small insert costs next to nothing.

    The tree has a mutex, because draws and updates come from several threads.
    """

    columns: Sequence[SlotColumn] = ()
    values: Sequence[StateValue] = ()

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._start(1)

    @abstractmethod
    def _new_tree(self, leaves: int) -> T:
        """A tree with so many leaves, all of them empty."""

    @abstractmethod
    def _leaves(self, slots: Slots | slice) -> npt.NDArray[Any] | float:
        """What the leaves of the rows in these slots are, where they may be drawn."""

    # -- rows that come and go ----------------------------------------------------------------------------------------------------------------

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Forgets the rows. This is the state of those that come."""
        self._start(buffer_size)

    def _start(self, buffer_size: int) -> None:
        self._rows = DrawableRows(buffer_size)
        self._tree: T | None = None
        self._first = self._end = 0  # The ids that the tree knows as live.

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Nothing to note."""

    def inserted(self, ids: range) -> None:
        """Notes the rows."""
        self._rows.inserted(ids)
        self._end = min(self._end, ids.start)
        self._first = min(self._first, self._end)  # Where all rows were evicted, the tree is up to date, and ids may begin below.
        if self._tree is not None and self._rows.end - self._end > MAX_PENDING:
            self._current()

    def evicted(self, ids: range) -> None:
        """Notes that the rows are gone. Where they are the newest ones, the next rows get their ids: the tree follows at once."""
        self._rows.evicted(ids)
        if self._tree is not None and self._end > self._rows.end:
            self._current()

    def totals(self, ring: Ring) -> Totals:
        """As `Sampler.totals`."""
        return Totals.of(self._rows.size)

    def check(self, priorities: Priorities) -> None:
        """No row has a priority."""

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """No row has a priority."""
        return 0

    def priorities(self, ids: RowIds) -> Priorities:
        """No row has a priority."""
        return np.zeros(len(ids))

    def _current(self) -> T:
        """The tree, up to date."""
        rows = self._rows
        if self._tree is None:
            self._tree, self._first, self._end = self._new_tree(rows.buffer_size), rows.oldest, rows.oldest
        if (self._first, self._end) != (rows.oldest, rows.end):
            self._follow(self._tree)
        return self._tree

    @contextmanager
    def _changing(self) -> Iterator[T]:
        """Holds the mutex while the tree, which is up to date, is changed. Where an interrupt (Ctrl-C) comes between, the tree is made anew later."""
        with self._mutex:
            try:
                yield self._current()
            except BaseException:
                self._tree = None
                self._rows.count_withheld()
                raise

    def _write_anew(self) -> None:
        """All leaves are other ones now. The tree, which is up to date, follows when it is needed."""
        self._end = self._first

    def _follow(self, tree: T) -> None:
        rows = self._rows
        if rows.oldest + rows.buffer_size > rows.end:  # Else there is a live row in each slot, whose leaf is there or is written now.
            for gone in (range(self._first, min(rows.oldest, self._end)), range(max(rows.end, self._first), self._end)):
                for start, stop in rows.slot_ranges(gone):
                    tree.write_range(start, stop, tree.EMPTY)
        for start, stop in rows.slot_ranges(range(max(self._end, rows.oldest), rows.end)):
            leaves = self._leaves(slice(start, stop))
            if rows.withheld is not None:
                leaves = np.where(rows.withheld[start:stop], tree.EMPTY, leaves)
            tree.write_range(start, stop, leaves)
        self._first, self._end = rows.oldest, rows.end

    # -- rows that are withheld ---------------------------------------------------------------------------------------------------------------

    def withhold(self, ids: RowIds) -> None:
        """As `Sampler.withhold`."""
        with self._changing() as tree:
            tree.write(self._rows.withhold(ids), tree.EMPTY)

    def offer(self, ids: RowIds) -> None:
        """As `Sampler.offer`."""
        with self._changing() as tree:
            slots = self._rows.offer(ids)
            tree.write(slots, self._leaves(slots))
