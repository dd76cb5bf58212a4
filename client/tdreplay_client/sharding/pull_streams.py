"""How the stream of one shard is opened for a stream over all of them."""

from __future__ import annotations

from typing import NamedTuple

from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.samplers import Uniform
from tdreplay.seeds import derived_seed
from tdreplay_client.reading.single_batches import Asked
from tdreplay_client.reading.stream import BatchStream
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_batches import Totals

__all__ = ["PullSize", "PullStreams"]

LARGE_BATCH = 1 << 20
"""From so many bytes on, a batch is put together alone; small rows do not come in larger messages."""
PARTS_AT_ONCE = 2
"""How many batches' parts of large rows come at once, where there are several shards: a message has its cost there, too."""
FEWEST_ROWS = 64
"""Of small rows no fewer come at once: less would cost as much."""
MOST_AHEAD = 4
"""How many times `prefetch` batches of small rows may be drawn ahead, over all shards. A message of few bytes costs what one of a few more does.

So up to so many shards the messages of each are as large as those of a server that is alone.
"""


class PullSize(NamedTuple):
    """How the draws of one shard come.

    Attributes:
        rows: How many come as one batch of the shard.
        ahead: How many such batches are on their way or wait.
        together: The most batches of the whole that are put together at once.
    """

    rows: int
    ahead: int
    together: int

    @classmethod
    def of(cls, batch_size: int, batch_bytes: int, shards: int, prefetch: int, *, seeded: bool, counted: bool) -> PullSize:
        """What suits batches of so many rows and bytes, of which about `prefetch` may be drawn ahead of the one that is taken.

        Args:
            batch_size: Rows of a batch.
            batch_bytes: About what they take.
            shards: How many there are.
            prefetch: The most batches that are drawn ahead.
            seeded: Whether the rows of a batch are to follow from a seed alone: then what comes as one does not depend on `prefetch`. That of a shard
                that is alone is a batch, as the same seed gives it to one server.
            counted: Whether draws count: then no more come than are needed.
        """
        if counted or (seeded and shards == 1):
            return cls(-(-batch_size // shards), prefetch + 1, 1)
        if batch_bytes >= LARGE_BATCH:
            return cls(-(-batch_size * min(PARTS_AT_ONCE, shards) // shards), max(2, -(-prefetch // min(PARTS_AT_ONCE, shards)) + 1), 1)
        most = batch_size * LARGE_BATCH // max(batch_bytes, 1)
        share = batch_size * min(MOST_AHEAD, shards) // shards  # Of each shard for each of the batches that are drawn ahead.
        rows = min(max(share if seeded else share * max(1, prefetch // 2), FEWEST_ROWS), most, MAX_BATCH_SIZE)
        return cls(rows, max(2, share * prefetch // rows), max(1, prefetch // 2))


class PullStreams:
    """Opens the streams of shards.

    Attributes:
        seed: Of the whole stream; None: it has none.
        size: How the draws come. It follows from the rows, so it is known when the first stream is opened.

    Args:
        asked: What a batch of the whole is asked to be.
        shards: How many shards there are.
        prefetch: The most batches that are drawn ahead.
        fields: The fields of a row; None: all of them.
        seed: The first one.
        counted: Whether draws count.
    """

    def __init__(self, asked: Asked, shards: int, prefetch: int, *, fields: tuple[str, ...] | None, seed: int | None, counted: bool) -> None:
        self._asked, self._shards, self._prefetch, self.seed = asked, shards, prefetch, seed
        self._fields, self._counted = fields, counted
        self.size: PullSize | None = None

    def totals(self, shard: Shard) -> tuple[Totals, str]:
        """Of what the shard would draw now, and the generation of its table.

        Raises:
            ReplayError: it does not say it.
        """
        return shard.asked(lambda table: table.totals_now(uniform=self._uniform, view=self._asked.view))

    @property
    def _uniform(self) -> bool:
        return self._asked.sampler == Uniform.name

    def __call__(self, shard: Shard, taken: int) -> tuple[BatchStream, int]:
        """A stream of the shard of which so many rows were taken, and how many rows of its first batch were among them.

        Raises:
            ReplayError: it cannot be opened.
        """
        size = self.size = self.size or self._suitable(shard)
        seed = self.seed if self.seed is None or self._shards == 1 else derived_seed(self.seed, shard.number)
        view = None if self._asked.view is None else self._asked.view.view
        stream = shard.reads.stream(size.rows, prefetch=size.ahead, fields=self._fields, seed=seed, wait=False, uniform=self._uniform, view=view)
        if seed is None:
            return stream, 0
        number, rows = divmod(taken, size.rows)
        if number:
            stream.load_state_dict({**stream.state_dict(), "position": number})
        return stream, rows

    def _suitable(self, shard: Shard) -> PullSize:
        schema = shard.reads.state().schema
        row = 0 if schema is None else sum(field.row_bytes for field in schema.select(self._fields))
        steps = 1 if self._asked.view is None else max(window.length for window in self._asked.view.windows.windows)
        size, seeded = self._asked.rows * row * steps, self.seed is not None
        return PullSize.of(self._asked.rows, size, self._shards, self._prefetch, seeded=seeded, counted=self._counted)
