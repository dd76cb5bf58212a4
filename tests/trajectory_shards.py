"""What a table of trajectories over several shards holds: a ring for each shard. An episode is on one of them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tdreplay.shard_ids import SHARD_ROW_BITS, sharded_row_ids
from trajectory_oracle import Ring, Row

__all__ = ["RingOverShards", "ring_of", "written"]


class RingOverShards(Ring):
    """The live rows of a table over shards, with the row ids and the slots of the whole.

    Attributes:
        homes: Episode -> the place of its shard, which must be known before its first row is inserted.
    """

    def __init__(self, capacity: int, shards: int) -> None:
        self.capacity, self.homes = capacity, dict[Hashable, int]()
        self.parts = [Ring(size) for size in _parts(capacity, shards)]
        self._merged: dict[int, Row] | None = None

    def insert(self, row: Row) -> int:
        self._merged = None
        place = self.homes[row.episode]
        return int(sharded_row_ids(self.parts[place].insert(row), place))

    @property
    def rows(self) -> dict[int, Row]:  # type: ignore[override]
        """Row id -> row, in ascending order."""
        if self._merged is None:
            self._merged = {sharded_row_ids(row_id, place): row for place, part in enumerate(self.parts) for row_id, row in part.rows.items()}
        return self._merged

    @property
    def write_count(self) -> int:  # type: ignore[override]
        """The rows that all shards ever stored."""
        return sum(part.write_count for part in self.parts)

    def slot(self, row_id: int) -> int:
        place, local = row_id >> SHARD_ROW_BITS, row_id & ((1 << SHARD_ROW_BITS) - 1)
        return self.parts[place].slot(local) * len(self.parts) + place

    @property
    def longest_window(self) -> int:
        return min(part.capacity for part in self.parts)

    def reset(self, capacity: int | None = None) -> None:
        self._merged, self.capacity = None, capacity or self.capacity
        for part, size in zip(self.parts, _parts(self.capacity, len(self.parts)), strict=True):
            part.reset(size)

    def rewind(self, saved: Ring) -> bool:
        assert isinstance(saved, RingOverShards)
        self._merged = None
        pairs = list(zip(self.parts, saved.parts, strict=True))
        if any(before.capacity != part.capacity or not before.rows.keys() <= part.rows.keys() for part, before in pairs):
            return False
        return all(part.rewind(before) for part, before in pairs)

    def prioritize(self, priorities: Any) -> None:
        self._merged = None
        for row_id, priority in priorities.items():
            self.parts[row_id >> SHARD_ROW_BITS].prioritize({row_id & ((1 << SHARD_ROW_BITS) - 1): priority})

    def copy(self) -> RingOverShards:
        made = RingOverShards(self.capacity, len(self.parts))
        made.homes, made.parts = dict(self.homes), [part.copy() for part in self.parts]
        return made


def _parts(capacity: int, shards: int) -> list[int]:
    return [len(range(place, capacity, shards)) for place in range(shards)]


def ring_of(buffer: Any, capacity: int) -> Ring:
    """What a buffer of that capacity must hold."""
    shards = len(getattr(buffer, "addresses", ()))
    return RingOverShards(capacity, min(shards, capacity)) if shards > 1 else Ring(capacity)


def written(buffer: Any) -> list[int]:
    """How many rows each shard has ever stored; nothing where there are no shards."""
    return [shard.description.write_count for shard in getattr(buffer.describe(), "shards", ())]
