"""One random batch over several shards, while it is drawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tensordict import TensorDict

from tdreplay.errors import ReplayError
from tdreplay.limits import MAX_SHARDS
from tdreplay.seeds import derived_seed
from tdreplay.system_fields import MIN_PROBABILITY, TABLE_SIZE
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.single_batches import Draw
from tdreplay_client.sharding.draw_query import DrawQuery
from tdreplay_client.sharding.joining import Part, joined
from tdreplay_client.sharding.leased_rows import LeasedRows
from tdreplay_client.sharding.owed_rows import OwedRows
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.totals import Shares

__all__ = ["Drawing", "Given"]


class Given(NamedTuple):
    """Rows of a batch of a shard: so many, from `start` on. `share`: how probable it was that a row comes from it; 1 where there is no other."""

    shard: Shard
    batch: ShardBatch
    rows: int
    start: int = 0
    share: float = 1.0


@dataclass
class Drawing:
    """A batch while it is drawn.

    Attributes:
        query: What it is to be.
        generator: Decides what is left to chance.
        shards: Those of the buffer, by place.
        owed: What each shard is still to give.
        leases: Of rows that count as drawn once the batch is whole.
        given: The batches that came, with their shards, and how many rows of each are used.
        shares: How probable it is that the next row comes from each shard, by number.
        rows: Among how many was drawn.
        min_probability: The smallest probability above 0 that one of them had.
        began: When it began, as `time.monotonic` says it.
        rounds: How often shards were asked.
        is_sure: Whether no shard had a row, and all are asked anew for that reason.
        error: Why a shard gave no rows when it was asked last; None: each gave some.
    """

    query: DrawQuery
    generator: np.random.Generator
    shards: Sequence[Shard]
    owed: OwedRows
    leases: list[LeasedRows] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    shares: dict[int, float] = field(default_factory=dict)
    rows: int = 0
    min_probability: float = 0.0
    began: float = field(default_factory=time.monotonic)
    rounds: int = 0
    is_sure: bool = False
    error: ReplayError | None = None
    _ending: threading.Lock = field(default_factory=threading.Lock)

    @property
    def missing(self) -> int:
        """The rows that did not come yet."""
        return self.query.rows - sum(one.rows for one in self.given)

    def end_leases(self, *, taken: bool) -> None:
        """Says to the shards whether the leased rows count as drawn, and waits until they heard it. If not, they give them to others.

        The first time counts. Several threads may call it.
        """
        with self._ending:
            leases, self.leases = self.leases, []
            for lease in leases:
                lease.say(taken=taken)
            for lease in leases:
                lease.end()

    def begin_anew(self) -> None:
        """Gives back all rows that came."""
        self.given.clear()
        self.owed = self.owed.anew()
        self.end_leases(taken=False)

    def share_out(self, rows: int, shares: Shares, whole: Shares, *, once: bool) -> None:
        """Draws how many of the next rows each shard gives.

        Args:
            rows: How many.
            shares: Of the shards that may let rows out.
            whole: Of all that are there.
            once: Whether no more can be drawn from a shard than its rows.
        """
        self.shares, self.rows, self.min_probability = shares.of, whole.rows, whole.min_probability
        counts = (shares.counts_once if once else shares.counts)(rows, self.generator)
        self.owed.share_out(dict(zip(shares.numbers, counts.tolist(), strict=True)))

    def draw_of(self, shard: Shard) -> Draw:
        """The seed and the number with which a shard draws. Those that are asked twice do not draw the same rows again."""
        if self.query.draw is None or len(self.shards) == 1:
            return self.query.draw
        seed, number = self.query.draw
        return derived_seed(seed, shard.number + self.rounds * MAX_SHARDS), number

    def batch(self, transfer: DeviceTransfer, lost: int | None) -> TensorDict:
        """The batch, once no row is missing. `lost`: as `joined` takes it."""
        transfer, places = transfer.for_view(self.query.view), {shard: place for place, shard in enumerate(self.shards)}
        parts = [Part(one.batch, one.shard.number, places.get(one.shard, 0), one.start, one.start + one.rows, one.share) for one in self.given]
        if len(self.shards) == 1:
            return joined(parts, 1, None, transfer, None, lost)
        order = self.generator.permutation(self.query.rows)
        drawn = {TABLE_SIZE.name: self.rows, MIN_PROBABILITY.name: self.min_probability}
        return joined(parts, len(self.shards), order, transfer, drawn, lost)
