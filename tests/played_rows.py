"""Plays the part of the row log for a sampler: a ring of rows that come, go, are withheld and offered, without contents and without a disk."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tdreplay import samplers
from tdreplay_server.durability.row_listeners import Told
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.samplers import Draw, made_sampler


class PlayedRows:
    """A sampler and the ring that it draws from."""

    def __init__(self, value: samplers.Sampler, buffer_size: int) -> None:
        self._value, self.ring = value, Ring(buffer_size)
        self.sampler = made_sampler(value)
        self._told = Told(self.sampler)
        self.state = SlotState(Kept(tuple(self.sampler.columns), tuple(self.sampler.values)), buffer_size)
        self.sampler.opened(self.state, self.ring.buffer_size)

    def insert(self, rows: int, priorities: Iterable[float] | None = None) -> None:
        self._tell(self.ring.retire(rows))
        given = None if priorities is None else np.array(list(priorities), np.float64)
        self.sampler.written(range(self.ring.write_count, self.ring.write_count + rows), given)
        self._tell(self.ring.commit(rows))

    def _tell(self, ring: Ring) -> None:
        self.ring = ring
        self._told.tell(ring)

    def leave(self, rows: int) -> None:
        """The oldest rows leave."""
        self._tell(Ring(self.ring.buffer_size, min(self.ring.oldest + rows, self.ring.write_count), self.ring.write_count))

    def rewind(self, rows: int) -> None:
        """The newest rows leave, and the next ones get their ids. If all rows leave, the next ids are those of rows that left long ago."""
        end = self.ring.write_count - rows
        self._tell(Ring(self.ring.buffer_size, *((self.ring.oldest, end) if end > self.ring.oldest else [max(0, self.ring.oldest - 2)] * 2)))

    def reopen(self) -> None:
        """Another process opens the table: another sampler, with the state that was kept."""
        self.sampler = made_sampler(self._value)
        self._told = Told(self.sampler)
        self.sampler.opened(self.state, self.ring.buffer_size)
        self._tell(self.ring)

    def reset(self, buffer_size: int) -> None:
        """All rows leave, and the capacity changes."""
        self._tell(self.ring.restart(buffer_size))
        self.state = SlotState(Kept(tuple(self.sampler.columns), tuple(self.sampler.values)), buffer_size)
        self.sampler.opened(self.state, self.ring.buffer_size)

    def withhold(self, ids: Iterable[int]) -> None:
        self.sampler.withhold(np.array(list(ids), np.int64))

    def offer(self, ids: Iterable[int]) -> None:
        self.sampler.offer(np.array(list(ids), np.int64))

    def update(self, ids: Iterable[int], priorities: Iterable[float]) -> int:
        return self.sampler.update(np.array(list(ids), np.int64), np.array(list(priorities), np.float64), self.ring)

    def draw(self, rows: int, *seeds: int) -> Draw:
        return self.sampler.draw(rows, [np.random.default_rng(seed) for seed in seeds or (0,)], self.ring)

    def ids(self, rows: int, *seeds: int) -> list[int]:
        return self.draw(rows, *seeds).ids.tolist()
