"""Every live row with the same probability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdreplay_server.durability.row_listeners import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.samplers.sampler import Draw

__all__ = ["UniformSampler"]


class UniformSampler:
    """Draws live rows uniformly, with replacement. It needs no memory: the ring says which rows are live."""

    columns: Sequence[SlotColumn] = ()
    values: Sequence[StateValue] = ()

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Nothing to note."""

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Nothing to note."""

    def inserted(self, ids: range) -> None:
        """Nothing to note."""

    def evicted(self, ids: range) -> None:
        """Nothing to forget."""

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """Only the number of live rows counts, not where their ids start: tables with the same rows draw the same ones."""
        draws = [generator.integers(ring.oldest, ring.write_count, rows) for generator in generators]
        return Draw(draws[0] if len(draws) == 1 else np.concatenate(draws), None, None, ring.size, 1 / ring.size)

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """No row has a priority."""
        return 0

    def withhold(self, ids: RowIds) -> None:
        """Nothing is withheld."""

    def offer(self, ids: RowIds) -> None:
        """Nothing is withheld."""
