"""The slot order of rows that lie in the rings of several shards, found by arithmetic: nothing of the size of the rows is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdreplay.selecting import Slots

__all__ = ["SlotOrder"]


class SlotOrder:
    """All rows of some windows of row ids, ordered by their slots in the whole buffer.

    Slot s comes before slot s + 1 of every shard, and in one slot the shards come in their order. The slots are cut where a window begins or ends, so
    that in each piece the same shards have a row in every slot.

    Args:
        windows: Of each shard the first id, the id after the last one, and the capacity. The row of an id lies in slot ``id % capacity``.
    """

    def __init__(self, windows: Sequence[tuple[int, int, int]]) -> None:
        self._firsts = np.array([first for first, _, _ in windows], np.int64)
        self._sizes = np.array([size for _, _, size in windows], np.int64)
        ranges = [part for number, window in enumerate(windows) for part in _ranges(number, *window)]
        edges = np.unique([edge for _, start, stop in ranges for edge in (start, stop)]).astype(np.int64)
        present: list[list[int]] = [[] for _ in edges[:-1]]
        for number, start, stop in ranges:
            for piece in range(int(np.searchsorted(edges, start)), int(np.searchsorted(edges, stop))):
                present[piece].append(number)
        self._edges, self._present = edges, [np.array(sorted(numbers), np.int64) for numbers in present]
        counts = np.diff(edges) * np.array([len(numbers) for numbers in present], np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def at(self, places: Slots) -> tuple[Slots, Slots]:
        """For some places of the order: the numbers of the windows, and the row ids there."""
        pieces = np.searchsorted(self._starts, places, side="right") - 1
        windows, slots = np.empty_like(places), np.empty_like(places)
        for piece in np.unique(pieces):
            mine, shards = pieces == piece, self._present[piece]
            beyond = places[mine] - self._starts[piece]
            slots[mine], windows[mine] = self._edges[piece] + beyond // len(shards), shards[beyond % len(shards)]
        firsts = self._firsts[windows]
        return windows, firsts + (slots - firsts) % self._sizes[windows]


def _ranges(number: int, first: int, end: int, size: int) -> list[tuple[int, int, int]]:
    """The slots of a window as ranges, each with the window's number: one, or two where the ring wraps around in it."""
    start, rows = first % size, end - first
    if start + rows <= size:
        return [(number, start, start + rows)]
    return [(number, 0, start + rows - size), (number, start, size)]
