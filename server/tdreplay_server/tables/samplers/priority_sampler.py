"""What samplers share whose rows have priorities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.tables.samplers.tree_sampler import LeafTree, TreeSampler

__all__ = ["PrioritySampler"]

PRIORITY, MAX_PRIORITY = "priority", "max_priority"
FIRST_PRIORITY = 1.0
"""What rows get before a row has a higher priority."""

T = TypeVar("T", bound=LeafTree)


class PrioritySampler(TreeSampler[T]):
    """Keeps the raw priority of each row, and the highest one so far, which rows get that come without one.

    The tree has leaves that are made of the priorities.
    """

    columns: Sequence[SlotColumn] = (SlotColumn(PRIORITY, np.float64),)
    values: Sequence[StateValue] = (StateValue(MAX_PRIORITY),)

    @abstractmethod
    def _leaves_of(self, priorities: Priorities) -> npt.NDArray[np.float64]:
        """What leaves are made of these priorities.

        Raises:
            InvalidArgumentError: one of them is out of range.
        """

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Forgets the rows. This is the state of those that come."""
        super().opened(state, buffer_size)
        self._priorities: Priorities = state.columns[PRIORITY]
        self._highest: npt.NDArray[Any] = state.values[MAX_PRIORITY]
        self._note_highest(FIRST_PRIORITY)

    def check(self, priorities: Priorities) -> None:
        """Passes where rows can have these priorities, which are finite, from 0 up.

        Raises:
            InvalidArgumentError: one of them is out of range.
        """
        self._leaves_of(priorities)

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Writes the priorities of the rows.

        Raises:
            InvalidArgumentError: a priority is out of range. Nothing was written. `check` says so before the rows lie in their slots.
        """
        if priorities is not None:
            self.check(priorities)
        given = None if priorities is None else priorities[-self._rows.buffer_size :]
        for start, stop in self._rows.slot_ranges(ids):
            self._priorities[start:stop] = self._highest if given is None else given[: stop - start]
            given = None if given is None else given[stop - start :]
        if priorities is not None and len(priorities):
            self._note_highest(priorities.max())

    def _note_highest(self, priority: float) -> None:
        if priority > self._highest:
            self._highest[...] = priority

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """As `Sampler.update`.

        Raises:
            InvalidArgumentError: a priority is out of range. Nothing changed.
        """
        leaves = self._leaves_of(priorities)
        with self._changing() as tree:
            live = self._rows.are_live(ids)
            if live.any():
                self._update(tree, ids[live] % self._rows.buffer_size, priorities[live], leaves[live])
        return int(np.count_nonzero(live))

    def _update(self, tree: T, slots: Slots, priorities: Priorities, leaves: npt.NDArray[np.float64]) -> None:
        withheld = self._rows.withheld
        self._priorities[slots] = priorities
        self._note_highest(self._priorities[slots].max())  # Of what is there now: of equal slots the last one counts.
        tree.write(slots, leaves if withheld is None else np.where(withheld[slots], tree.EMPTY, leaves))

    def priorities(self, ids: RowIds) -> Priorities:
        """As `Sampler.priorities`."""
        with self._mutex:
            found: Priorities = self._priorities[ids % self._rows.buffer_size]
        return found

    def _leaves(self, slots: Slots | slice) -> npt.NDArray[np.float64]:
        return self._leaves_of(self._priorities[slots])
