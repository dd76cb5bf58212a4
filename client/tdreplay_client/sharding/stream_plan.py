"""What a stream over shards is asked to be, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tdreplay.views import TableView

__all__ = ["StreamPlace", "StreamPlan"]


class StreamPlan(NamedTuple):
    """What a stream is asked to be.

    Attributes:
        table: The table's name.
        batch_size: Rows of a batch.
        view: What is made of the windows of a batch; None: the rows come as they are.
        wait: Whether a batch waits while all shards are empty.
        degrade: Whether it goes on without shards that are lost.
        timeout: The most seconds that a batch waits.
    """

    table: str
    batch_size: int
    view: TableView | None
    wait: bool
    degrade: bool
    timeout: float


class StreamPlace(NamedTuple):
    """Where a stream stands.

    Attributes:
        position: The number of the next batch.
        taken: How many rows of each shard, by its number, the batches before it have, where the stream has a seed.
    """

    position: int = 0
    taken: Mapping[int, int] = MappingProxyType({})

    def after(self, taken: Mapping[int, int]) -> StreamPlace:
        """The place after one more batch, which has so many rows of each shard."""
        return StreamPlace(
            self.position + 1, {number: self.taken.get(number, 0) + taken.get(number, 0) for number in self.taken.keys() | taken.keys()}
        )
