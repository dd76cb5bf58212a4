"""Every row once, in a random order, before any row a second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.tables.samplers.sampler import Draw
from tdreplay_server.tables.samplers.sum_tree import SumTree
from tdreplay_server.tables.samplers.tree_sampler import TreeSampler

__all__ = ["WithoutReplacementSampler"]

MARK, PASS = "drawn_in_pass", "pass"
MARKS = 255
"""The passes have so many marks, in turn. 0 is the mark of rows that were not drawn yet."""


class WithoutReplacementSampler(TreeSampler[SumTree]):
    """Draws a random row of those that were not drawn in this pass. The pass ends when there is none left; a batch may span its end.

    Rows that come belong to the pass. Each slot keeps the mark of the pass in which its row was drawn last. So a restart goes on in the pass.
    """

    columns: Sequence[SlotColumn] = (SlotColumn(MARK, np.uint8),)
    values: Sequence[StateValue] = (StateValue(PASS, np.int64),)

    def _new_tree(self, leaves: int) -> SumTree:
        return SumTree(leaves, np.uint8)

    def _leaves(self, slots: Slots | slice) -> npt.NDArray[np.uint8]:
        return np.asarray(self._marks[slots] != self._mark).astype(np.uint8)

    @property
    def _mark(self) -> int:
        return 1 + int(self._pass) % MARKS

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Forgets the rows. This is the state of those that come."""
        super().opened(state, buffer_size)
        self._marks: npt.NDArray[np.uint8] = state.columns[MARK]
        self._pass: npt.NDArray[Any] = state.values[PASS]

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Notes that the rows were not drawn yet."""
        for start, stop in self._rows.slot_ranges(ids):
            self._marks[start:stop] = 0

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`. The batches follow one another in the pass.

        Raises:
            EmptyTableError: no row can be drawn.
        """
        size = self._rows.check_any()
        with self._changing():
            parts = [part for generator in generators for part in self._batch(rows, generator)]
        return Draw(parts[0] if len(parts) == 1 else np.concatenate(parts), None, None, size, 1 / size)

    def _batch(self, rows: int, generator: np.random.Generator) -> list[RowIds]:
        """The rows of a batch, in a part for each pass of which it has rows."""
        parts = []
        while rows:
            left = int(self._current().total) or self._next_pass()
            parts.append(self._take(generator.choice(left, min(rows, left), replace=False)))
            rows -= len(parts[-1])
        return parts

    def _take(self, ranks: npt.NDArray[np.int64]) -> RowIds:
        """The ids of the rows of these ranks among those that are left, by age. They are not left any more."""
        tree = self._current()
        slots = tree.at(ranks, self._rows.first_slot)
        self._marks[slots] = self._mark
        tree.write(slots, tree.EMPTY)
        return self._rows.ids(slots)

    def _next_pass(self) -> int:
        """Begins another pass, and says how many rows it has."""
        self._pass += 1
        self._write_anew()
        return int(self._current().total)
