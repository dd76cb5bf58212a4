"""A tournament over the slots of a table: finds the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay_server.storage.ring import RowIds, Slots
from tdreplay_server.tables.samplers.leaf_blocks import FAN_OUT, blocks_of, folded, level_sizes, turned

__all__ = ["BestTree", "Keys"]

Keys = npt.NDArray[np.float64]
"""What leaves are compared by: shape [n], the highest is the best."""

NO_ID = np.iinfo(np.int64).max


class BestTree:
    """The keys of leaves, and the best of them in blocks, blocks of blocks and so on. Of equal keys that with the lowest row id is the best.

    The best n of a level lie in the best n blocks of it, which are n nodes of the level above. So n rows are found from the top down, in a time that
    grows with n and with the number of levels.

    Not for several threads at once.

    Args:
        leaves: How many there are.
        ids: Says the ids of the rows of leaves, in an array of any shape. Those of empty leaves do not count.
    """

    EMPTY = float("-inf")
    """The key of a leaf that is never found."""

    def __init__(self, leaves: int, ids: Callable[[Slots], RowIds]) -> None:
        blocks = level_sizes(leaves)
        self._keys: list[Keys] = [np.full((n, FAN_OUT), self.EMPTY) for n in blocks]
        self._ids = [np.zeros((n, FAN_OUT), np.int64) for n in blocks[1:]]
        self._leaf_ids = ids

    def best(self, count: int) -> Slots:
        """The best leaves, in order: `count` of them, from 1 up, or all that are not empty."""
        nodes = np.arange(self._keys[-1].size)
        for level in reversed(range(len(self._keys))):
            keys = self._keys[level].reshape(-1)[nodes]
            ids = self._ids_of(level, nodes)
            chosen = _best(keys, ids, count)
            if not level:
                nodes = nodes[chosen[np.lexsort((ids[chosen], -keys[chosen]))]]
                break
            nodes = (nodes[chosen][:, None] * FAN_OUT + np.arange(FAN_OUT)).reshape(-1)
        return nodes

    def _ids_of(self, level: int, nodes: Slots) -> RowIds:
        """The ids of the best rows of nodes."""
        return self._ids[level - 1].reshape(-1)[nodes] if level else self._leaf_ids(nodes)

    def write(self, leaves: Slots, keys: Keys | float) -> None:
        """Gives leaves, in any order, their keys. The last one of several of a leaf counts."""
        self._keys[0].reshape(-1)[leaves] = keys
        nodes = leaves
        for level in range(len(self._ids)):
            nodes = nodes // FAN_OUT
            if len(nodes) > len(self._keys[level]):
                nodes = np.arange(len(self._keys[level]))
            self._compare(level, nodes)

    def write_range(self, start: int, stop: int, keys: Keys | float) -> None:
        """Gives the leaves from start to stop their keys."""
        self._keys[0].reshape(-1)[start:stop] = keys
        for level in range(len(self._ids)):
            for blocks in blocks_of(start, stop):
                self._compare(level, np.arange(blocks.start, blocks.stop))
            start, stop = start // FAN_OUT, -(-stop // FAN_OUT)

    def _compare(self, level: int, blocks: Slots) -> None:
        """Finds the best children of some blocks of a level."""
        keys = turned(self._keys[level].take(blocks, axis=0))
        ids = self._ids_of(level, blocks * FAN_OUT + np.arange(FAN_OUT)[:, None])
        best = folded(keys, np.maximum)
        self._keys[level + 1].reshape(-1)[blocks] = best
        self._ids[level].reshape(-1)[blocks] = folded(np.where(keys == best, ids, NO_ID), np.minimum)


def _best(keys: Keys, ids: RowIds, count: int) -> npt.NDArray[Any]:
    """Where the best `count` are, in no order; all that are not empty, if they are not more."""
    filled = np.flatnonzero(keys > BestTree.EMPTY)
    if len(filled) <= count:
        return filled
    last = np.partition(keys, len(keys) - count)[len(keys) - count]
    above, level = np.flatnonzero(keys > last), np.flatnonzero(keys == last)
    missing = count - len(above)
    if missing < len(level):
        level = level[np.argpartition(ids[level], missing - 1)[:missing]]
    return np.concatenate([above, level])
