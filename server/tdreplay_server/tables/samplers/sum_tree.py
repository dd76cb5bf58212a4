"""A tree of sums over the slots of a table: draws slots by weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay_server.storage.ring import Slots
from tdreplay_server.tables.samplers.leaf_blocks import FAN_OUT, blocks_of, folded, level_sizes, turned

__all__ = ["SumTree", "Weights"]

Weights = npt.NDArray[Any]
"""Weights of leaves: shape [n], of the tree's dtype, from 0 up to `MAX_WEIGHT`."""

TINY = 2.0**-900
"""Below this a sum of weights has too few digits to be divided by chance. It is scaled up before."""


class SumTree:
    """The weights of leaves, and their sums over blocks, blocks of blocks and so on. All are 0 at first.

    A parent is summed anew from its children whenever one of them changes, in a fixed order. So there is no drift, and trees of the same weights are
    the same, whatever was written before. Next to 8 bytes for each leaf of float64 it takes 1 byte for their sums and the smallest ones.

    Not for several threads at once.

    Args:
        leaves: How many there are.
        dtype: What weights are: float64, or uint8 where they are 0 and 1.
    """

    EMPTY = 0.0
    """The weight of a leaf that is never drawn."""

    def __init__(self, leaves: int, dtype: npt.DTypeLike = np.float64) -> None:
        blocks = level_sizes(leaves)
        self._levels: list[npt.NDArray[Any]] = [np.zeros((n, FAN_OUT), np.float64 if level else dtype) for level, n in enumerate(blocks)]
        self._least = [np.zeros((n, FAN_OUT)) for n in blocks[1:]] if self._levels[0].dtype == np.float64 else []
        self.weights: Weights = self._levels[0].reshape(-1)
        self._cumulated: npt.NDArray[np.float64] | None = None

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._top()[-1])

    def smallest(self) -> float:
        """The smallest weight above 0. 0 where there is none. The weights are float64."""
        top = self._least[-1] if self._least else self._levels[0]
        return float(_smallest_above_0(top.reshape(-1, 1))[0])

    def draw(self, shares: npt.NDArray[np.float64], first: int) -> Slots:
        """The leaves where the sum of the weights first exceeds `shares` of the sum of all, which is not 0. Shares are from 0 to below 1.

        The leaf `first` begins, and leaf 0 follows the last one. So it does not matter in which leaf the first weight lies, but for rounding.
        """
        scale = 1.0 if self.total > TINY else 2.0**160
        total, before = self.total * scale, self._before(first) * scale
        leaves, order = np.empty(len(shares), np.int64), shares.argsort()  # In ascending order less memory is jumped over.
        targets = np.minimum(shares[order] * total + before, np.nextafter(total + before, 0))
        targets[targets >= total] -= total
        leaves[order] = self._leaves_at(targets, scale)
        return leaves

    def at(self, ranks: npt.NDArray[np.int64], first: int) -> Slots:
        """The leaves of weight 1 with so many others before them, where all weights are 0 or 1. The leaf `first` begins; leaf 0 follows the last."""
        return self._leaves_at(np.mod(ranks + self._before(first), self.total, dtype=np.float64) + 0.5, 1.0)

    def _before(self, leaf: int) -> float:
        """The sum of the weights of all leaves before `leaf`."""
        weight = 0.0
        for level in self._levels[:-1]:
            block, child = divmod(leaf, FAN_OUT)
            weight += float(level[block, :child].sum())
            leaf = block
        return weight + float(self._top()[leaf])

    def _top(self) -> npt.NDArray[np.float64]:
        """The sums of the weights below the first nodes of the highest level: of none, of the first, of the first two, and so on."""
        if self._cumulated is None:
            nodes = self._levels[-1].reshape(-1)
            self._cumulated = np.zeros(len(nodes) + 1)
            np.cumsum(nodes, out=self._cumulated[1:])
        return self._cumulated

    def _leaves_at(self, targets: npt.NDArray[np.float64], scale: float) -> Slots:
        """The leaves where the sum of the weights, times `scale`, first exceeds the targets, which change."""
        sums = self._top() * scale if scale != 1.0 else self._top()
        np.minimum(targets, np.nextafter(sums[-1], 0), out=targets)  # Rounding may have taken it to the end.
        nodes: Slots = sums.searchsorted(targets, side="right") - 1
        targets -= sums[nodes]
        columns = np.arange(len(targets))
        for level in reversed(self._levels[:-1]):
            sums = _sums_before(level.take(nodes, axis=0) if scale == 1.0 else level.take(nodes, axis=0) * scale)
            # Rounding may have taken the target to the end of its block. What comes after the last child above 0 is out of its reach.
            np.minimum(targets, np.nextafter(sums[-1], 0), out=targets)
            children = np.add.reduce((sums[1:] <= targets).view(np.int8), axis=0, dtype=np.int8).astype(np.intp)
            targets -= sums[children, columns]
            nodes = nodes * FAN_OUT + children
        return nodes

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def write(self, leaves: Slots, weights: Weights | float) -> None:
        """Gives leaves, in any order, their weights. The last one of several of a leaf counts."""
        self.weights[leaves] = weights
        nodes = leaves
        for above in range(1, len(self._levels)):
            nodes = nodes // FAN_OUT
            if len(nodes) > len(self._levels[above - 1]):
                nodes = np.arange(len(self._levels[above - 1]))
            self._sum_up(above, nodes, nodes)
        self._cumulated = None

    def write_range(self, start: int, stop: int, weights: Weights | float) -> None:
        """Gives the leaves from start to stop their weights."""
        self.weights[start:stop] = weights
        for above in range(1, len(self._levels)):
            for blocks in blocks_of(start, stop):
                self._sum_up(above, blocks, blocks)
            start, stop = start // FAN_OUT, -(-stop // FAN_OUT)
        self._cumulated = None

    def _sum_up(self, above: int, blocks: Slots | slice, nodes: Slots | slice) -> None:
        """Computes `nodes` of the level `above` from the blocks of the level below it."""
        below = self._levels[above - 1]
        children = turned(below[blocks] if isinstance(blocks, slice) else below.take(blocks, axis=0))
        self._levels[above].reshape(-1)[nodes] = folded(children, np.add)
        if self._least:
            if above > 1:
                least = self._least[above - 2]
                children = turned(least[blocks] if isinstance(blocks, slice) else least.take(blocks, axis=0))
            self._least[above - 1].reshape(-1)[nodes] = _smallest_above_0(children)


def _sums_before(blocks: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each block of weights, of shape [n, FAN_OUT], the sums of the first 0, 1, 2, ... of them: shape [FAN_OUT + 1, n]."""
    sums = np.empty((FAN_OUT + 1, len(blocks)))
    sums[0] = 0.0
    for before, children, after in zip(sums, blocks.T, sums[1:]):  # noqa: B905 - there is one sum more than there are children.
        np.add(before, children, out=after)
    return sums


def _smallest_above_0(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The smallest of each column that is not 0; 0 where all are.

    Floats from 0 up are ordered as their bits are. With 1 less the bits of 0 are the highest number of all.
    """
    bits = values.view(np.uint64) - np.uint64(1)
    least = np.minimum.reduce(bits) if bits.shape[1] == 1 else folded(bits, np.minimum)
    return np.asarray((least + np.uint64(1)).view(np.float64))
