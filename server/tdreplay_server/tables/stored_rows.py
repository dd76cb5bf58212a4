"""Rows that are asked for by their ids: those of them that are stored when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from tdreplay.system_fields import PRIORITY
from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.epochs import PinnedRows
from tdreplay_server.tables.selection import RowFormat, Selection

__all__ = ["PinnedPriorities", "StoredPart", "StoredRows", "all_of"]

Chosen = Callable[[RowIds], "tuple[RowIds, RowIds]"]
"""Ids of live rows -> those that come, and the oldest row that each needs."""


class PinnedPriorities(PinnedRows):
    """The rows of these ids and no others, with the priorities that they have when they are read.

    Args:
        ids, ring: As in `PinnedRows`.
        priorities: As `Sampler.priorities`.
    """

    def __init__(self, ids: RowIds, ring: Ring, priorities: Callable[[RowIds], Priorities]) -> None:
        super().__init__(ids, ring)
        self._pinned, self._priorities = ids, priorities

    def drawn(self, start: int, stop: int) -> Mapping[str, npt.NDArray[Any]]:
        """The priorities of the rows from start to stop."""
        return {PRIORITY.name: self._priorities(self._pinned[start:stop])}


class StoredPart(NamedTuple):
    """The next ones of such rows, at one moment.

    Attributes:
        rows: They, to be read.
        left: How many come after them.
    """

    rows: Selection
    left: int


class StoredRows:
    """The rows of some ids, in the order of these. Those that are not stored are left out, whenever they went: no row takes the place of another.

    It is made under the table's shared lock, and used by one thread.

    Attributes:
        row: What is read of each row.

    Args:
        log: Has the rows.
        row: What is read of each.
        ids: Their ids, each of which was given to a row.
        chosen: Says which of those that are live come.
        priorities: As `Sampler.priorities`; None: they are not read. They cannot come with windows.
    """

    def __init__(self, log: RowLog, row: RowFormat, ids: RowIds, chosen: Chosen, priorities: Callable[[RowIds], Priorities] | None) -> None:
        self.row, self._log, self._chosen, self._priorities, self._version = row, log, chosen, priorities, log.version
        self._ids = self._first_rows = ids
        self._choose()

    @property
    def left(self) -> int:
        """How many are still to be read."""
        return len(self._ids)

    def part(self, most: int) -> StoredPart:
        """What comes next: at most so many rows, and none where none is left. They may be overwritten before they are read.

        Raises:
            TableChangedError: the table was reset, rewound or closed.
        """
        log = self._log
        with log.shared:
            log.check_version(self._version)
            if log.ring.oldest > self._oldest:
                self._choose()
            ids, first_rows = self._ids[:most], self._first_rows[:most]
            rows = PinnedRows(ids, log.ring, first_rows) if self._priorities is None else PinnedPriorities(ids, log.ring, self._priorities)
            return StoredPart(Selection(self.row, len(ids), rows, self._version), self.left - len(ids))

    def note_read(self, rows: int) -> None:
        """So many of them were read."""
        self._ids, self._first_rows = self._ids[rows:], self._first_rows[rows:]

    def _choose(self) -> None:
        """Leaves out what is not stored any more."""
        self._oldest = self._log.ring.oldest
        live = self._ids >= self._oldest
        self._ids, self._first_rows = self._chosen(self._ids if live.all() else self._ids[live])


def all_of(ids: RowIds) -> tuple[RowIds, RowIds]:
    """Each of them, which needs no row but itself."""
    return ids, ids
