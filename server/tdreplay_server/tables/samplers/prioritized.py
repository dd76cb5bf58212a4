"""Rows with probabilities proportional to their priorities to some power."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tdreplay.priorities import weights_of
from tdreplay_server.durability.insert import Priorities
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.samplers.batches import each_batch
from tdreplay_server.tables.samplers.priority_sampler import PrioritySampler
from tdreplay_server.tables.samplers.sampler import Draw, Totals
from tdreplay_server.tables.samplers.sum_tree import SumTree

__all__ = ["PrioritizedSampler"]

SMALLEST = float(np.nextafter(0, 1))


class PrioritizedSampler(PrioritySampler[SumTree]):
    """Draws with replacement. The weight of a row is its priority to the power `alpha`; its probability is its share of the sum of all weights.

    A row of priority 0 is never drawn. If all rows have priority 0, all are equally probable. Where the power of a priority above 0 is too small for
    a float64, the weight is the smallest one that there is.

    Args:
        alpha: From 0 (uniform over the rows whose priority is not 0) up.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        super().__init__()

    def _new_tree(self, leaves: int) -> SumTree:
        return SumTree(leaves)

    def _leaves_of(self, priorities: Priorities) -> npt.NDArray[np.float64]:
        """The weights."""
        return weights_of(priorities, self._alpha)

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`.

        Raises:
            EmptyTableError: no row can be drawn.
        """
        with self._mutex:
            size, tree = self._rows.check_any(), self._current()
            total = tree.total
            if not total:
                return self._drawn_evenly(rows, generators)
            slots = tree.draw(each_batch(generators, lambda generator: generator.random(rows)), self._rows.first_slot)
            least = max(tree.smallest() / total, SMALLEST)
            return Draw(self._rows.ids(slots), tree.weights[slots] / total, self._priorities[slots], size, least, total)

    def totals(self, ring: Ring) -> Totals:
        """As `Sampler.totals`. Rows of priority 0 are among the rows, and weigh nothing."""
        with self._mutex:
            size = self._rows.size
            return Totals(size, self._current().total, self._current().smallest()) if size else Totals.of(0)

    def _drawn_evenly(self, rows: int, generators: Sequence[np.random.Generator]) -> Draw:
        """The draw where all weights are 0."""
        drawable, size = self._rows, self._rows.size
        ranks = each_batch(generators, lambda generator: generator.integers(0, size, rows))
        ids: RowIds = drawable.oldest + ranks if drawable.withheld is None else drawable.among(range(drawable.oldest, drawable.end))[ranks]
        return Draw(ids, np.full(len(ids), 1 / size), self._priorities[ids % drawable.buffer_size], size, 1 / size, 0.0)
