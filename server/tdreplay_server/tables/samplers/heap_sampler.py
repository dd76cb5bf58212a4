"""What the samplers share that take the rows of the highest or the lowest priority first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.samplers.best_tree import BestTree
from tdreplay_server.tables.samplers.priority_sampler import PrioritySampler
from tdreplay_server.tables.samplers.sampler import Draw

__all__ = ["HeapSampler"]


class HeapSampler(PrioritySampler[BestTree]):
    """A batch takes the first rows, in the order of their priorities, that may be drawn: each once before any again.

    Of rows of the same priority the oldest comes first. The next batch takes the same rows, if none was withheld and no priority changed.

    Attributes:
        sign: 1 where the highest priority comes first, -1 where the lowest does.
    """

    sign: ClassVar[float]

    def _new_tree(self, leaves: int) -> BestTree:
        return BestTree(leaves, self._rows.ids)

    def _leaves_of(self, priorities: Priorities) -> npt.NDArray[np.float64]:
        return self.sign * priorities

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`. All batches have the same rows.

        Raises:
            EmptyTableError: no row can be drawn.
        """
        with self._mutex:
            size = self._rows.check_any()
            slots = np.tile(np.resize(self._current().best(min(rows, size)), rows), len(generators))
            return Draw(self._rows.ids(slots), None, self._priorities[slots], size, 1 / size)
