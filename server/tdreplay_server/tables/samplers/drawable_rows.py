"""Which rows of a table may be drawn: the live ones, without those that are withheld."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdreplay.errors import EmptyTableError
from tdreplay_server.storage.ring import RowIds, Slots, slot_ranges

__all__ = ["DrawableRows"]


class DrawableRows:
    """The live rows, and flags in the slots of those that are withheld. The flags take memory from the first row on that is withheld.

    Calls that change it come one at a time.

    Attributes:
        oldest: The id of the oldest live row.
        end: The id after that of the newest live row.
        buffer_size: The number of slots.
        withheld: For each slot whether its row is withheld: bool of shape [buffer_size]. None: none ever was.
    """

    def __init__(self, buffer_size: int) -> None:
        self.buffer_size = buffer_size
        self.oldest = self.end = 0
        self.withheld: npt.NDArray[np.bool_] | None = None
        self._held = 0

    @property
    def first_slot(self) -> int:
        """The slot of the oldest live row."""
        return self.oldest % self.buffer_size

    @property
    def size(self) -> int:
        """How many rows may be drawn."""
        return self.end - self.oldest - self._held

    def check_any(self) -> int:
        """How many rows may be drawn: at least one.

        Raises:
            EmptyTableError: there is none.
        """
        if self.size < 1:
            raise EmptyTableError(f"no row can be drawn: the table has {self.end - self.oldest} rows, and {self._held} of them are withheld")
        return self.size

    def inserted(self, ids: range) -> None:
        """These rows are live from now on, and none of them is withheld."""
        if self.oldest == self.end:
            self.oldest = self.end = ids.start
        self.end = max(self.end, ids.stop)
        self.oldest = max(self.oldest, self.end - self.buffer_size)
        self._clear(ids)

    def evicted(self, ids: range) -> None:
        """These rows, the oldest or the newest ones, are not live any more."""
        self._clear(range(max(ids.start, self.oldest), min(ids.stop, self.end)))
        if ids.stop >= self.end:
            self.end = max(min(self.end, ids.start), self.oldest)
        else:
            self.oldest = max(self.oldest, ids.stop)

    def _clear(self, ids: range) -> None:
        if self.withheld is not None:
            for start, stop in self.slot_ranges(ids):
                self._held -= int(np.count_nonzero(self.withheld[start:stop]))
                self.withheld[start:stop] = False

    def withhold(self, ids: RowIds) -> Slots:
        """The slots of those of the rows that could be drawn, each once, in ascending order. They cannot be drawn from now on."""
        if self.withheld is None:
            self.withheld = np.zeros(self.buffer_size, np.bool_)
        return self._flag(ids, self.withheld, flag=True)

    def offer(self, ids: RowIds) -> Slots:
        """The slots of those of the rows that were withheld, each once, in ascending order. They can be drawn from now on."""
        return np.empty(0, np.int64) if self.withheld is None else self._flag(ids, self.withheld, flag=False)

    def _flag(self, ids: RowIds, withheld: npt.NDArray[np.bool_], *, flag: bool) -> Slots:
        slots: Slots = np.sort(ids[self.are_live(ids)] % self.buffer_size)
        slots = slots[(np.diff(slots, prepend=-1) > 0) & (withheld[slots] != flag)]  # NumPy's `unique` hashes, which takes ten times as long.
        withheld[slots] = flag
        self._held += len(slots) if flag else -len(slots)
        return slots

    def count_withheld(self) -> None:
        """Counts the rows that are withheld anew: an interrupt (Ctrl-C) may have come between a flag and its number. It takes time for each slot."""
        self._held = 0 if self.withheld is None else int(np.count_nonzero(self.withheld))

    def are_live(self, ids: RowIds) -> npt.NDArray[np.bool_]:
        """For each id whether its row is live."""
        live: npt.NDArray[np.bool_] = (ids >= self.oldest) & (ids < self.end)
        return live

    def slot_ranges(self, ids: range) -> list[tuple[int, int]]:
        """The slots of the rows of these ids, of which the last `buffer_size` lie in slots: at most two ranges [start, stop)."""
        rows = min(len(ids), self.buffer_size)
        return slot_ranges(ids.stop - rows, rows, self.buffer_size) if rows else []

    def ids(self, slots: Slots) -> RowIds:
        """The ids of the live rows in these slots."""
        newest = self.end - 1
        ids: RowIds = newest - (newest - slots) % self.buffer_size
        return ids

    def among(self, ids: range) -> RowIds:
        """Those of the live rows of these ids that may be drawn, in ascending order."""
        if self.withheld is None or not ids:
            return np.arange(ids.start, ids.stop)
        parts, first = [], ids.start
        for start, stop in self.slot_ranges(ids):
            parts.append(first + np.flatnonzero(~self.withheld[start:stop]))
            first += stop - start
        found: RowIds = np.concatenate(parts)
        return found
