"""Every row with the same probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tdreplay_server.storage.ring import Ring, Slots
from tdreplay_server.tables.samplers.batches import each_batch
from tdreplay_server.tables.samplers.sampler import Draw, Totals
from tdreplay_server.tables.samplers.sum_tree import SumTree
from tdreplay_server.tables.samplers.tree_sampler import TreeSampler

__all__ = ["UniformSampler"]


class UniformSampler(TreeSampler[SumTree]):
    """Draws rows uniformly, with replacement. As long as no row was withheld it needs no memory: the ring says which rows are live.

    Only the number of rows counts, not where their ids start: tables with the same rows draw the same ones.
    """

    def _new_tree(self, leaves: int) -> SumTree:
        return SumTree(leaves, np.uint8)

    def _leaves(self, slots: Slots | slice) -> npt.NDArray[np.uint8] | float:
        return 1

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`.

        Raises:
            EmptyTableError: no row can be drawn.
        """
        if self._rows.withheld is None:
            ids = each_batch(generators, lambda generator: generator.integers(ring.oldest, ring.write_count, rows))
            return Draw(ids, None, None, ring.size, 1 / ring.size)
        with self._mutex:
            size, tree = self._rows.check_any(), self._current()
            ranks = each_batch(generators, lambda generator: generator.integers(0, size, rows))
            ids = self._rows.ids(tree.at(ranks, self._rows.first_slot))
        return Draw(ids, None, None, size, 1 / size)

    def totals(self, ring: Ring) -> Totals:
        """As `Sampler.totals`."""
        return Totals.of(ring.size if self._rows.withheld is None else self._rows.size)
