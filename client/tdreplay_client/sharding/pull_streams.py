"""How the stream of one shard is opened for a stream over all of them."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import NamedTuple

from tdreplay.block import Layout
from tdreplay.errors import SchemaError
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE, MAX_HEADER_BYTES, MOST_PLACED_BYTES, MOST_PLACED_SLOTS
from tdreplay.samplers import Uniform
from tdreplay.seeds import derived_seed
from tdreplay_client.reading.placed_call import PlacedCall
from tdreplay_client.reading.single_batches import Asked
from tdreplay_client.reading.stream import BatchStream
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_table import TotalsNow
from tdreplay_client.transport.batch_memory import BatchMemory

__all__ = ["PullSize", "PullStreams"]

log = logging.getLogger("tdreplay")
LARGE_BATCH = 1 << 20
"""From so many bytes on, a batch is put together alone; small rows do not come in larger messages."""
PARTS_AT_ONCE = 2
"""How many batches' parts of large rows come at once through shared memory, where there are several shards: a message has its cost there, too."""
FEWEST_ROWS = 64
"""Of small rows no fewer come at once: less would cost as much."""
MOST_AHEAD = 4
"""How many times `prefetch` batches of small rows may be drawn ahead, over all shards. A message of few bytes costs what one of a few more does.

So up to so many shards the messages of each are as large as those of a server that is alone.
"""

SPARE_SLOTS = 2
"""Slots for whole batches beside those for the batches on their way: for the batch that is used, and the one that was."""
DRAWN_BYTES = 64
"""What a row takes beside its fields, with all that can be known of its draw."""
HEADER_BYTES = MAX_HEADER_BYTES + 8
MOST_PLACES = 1 << 15
"""Rows that are asked for at once: a place takes two bytes of a message, which may have 128 KiB."""
MOST_PLACED_ROWS = 1 << 13
"""Rows of a batch that shards write themselves: several batches have room in a message."""


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
    def of(cls, batch_size: int, batch_bytes: int, shards: int, prefetch: int, *, seeded: bool, counted: bool, shared: bool = False) -> PullSize:
        """What suits batches of so many rows and bytes, of which about `prefetch` may be drawn ahead of the one that is taken.

        Args:
            batch_size: Rows of a batch.
            batch_bytes: About what they take.
            shards: How many there are.
            prefetch: The most batches that are drawn ahead.
            seeded: Whether the rows of a batch are to follow from a seed alone: then what comes as one does not depend on `prefetch`. That of a shard
                that is alone is a batch, as the same seed gives it to one server.
            counted: Whether draws count: then no more come than are needed.
            shared: Whether they come through memory that is shared with the server.
        """
        if counted or (seeded and shards == 1):
            return cls(-(-batch_size // shards), prefetch + 1, 1)
        if batch_bytes >= LARGE_BATCH:
            several = -(-batch_size * min(PARTS_AT_ONCE, shards) // shards)
            # Over the wire what comes as one is one message, which lies in memory as it came: of several, a batch would be copied together first.
            rows = several if shared or shards == 1 else min(several, max(1, batch_size * BLOCK_BYTES // batch_bytes))
            return cls(rows, max(2, -(-batch_size * prefetch // (shards * rows)) + 1), 1)
        most = batch_size * LARGE_BATCH // max(batch_bytes, 1)
        share = batch_size * min(MOST_AHEAD, shards) // shards  # Of each shard for each of the batches that are drawn ahead.
        rows = min(max(share if seeded else share * max(1, prefetch // 2), FEWEST_ROWS), most, MAX_BATCH_SIZE)
        return cls(rows, max(2, share * prefetch // rows), max(1, prefetch // 2))


class PullStreams:
    """Opens the streams of shards.

    Attributes:
        seed: Of the whole stream; None: it has none.
        places: Whether the shards write to memory of this process, as far as is known.
        memory: That memory. None: there is none yet.
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
        self._asked, self._shards, self.prefetch, self.seed = asked, shards, prefetch, seed
        self._fields, self._counted = fields, counted
        self.size: PullSize | None = None
        self.places = asked.view is None and seed is None and not counted and asked.rows <= MOST_PLACED_ROWS
        self.memory: BatchMemory | None = None
        self._layouts: weakref.WeakKeyDictionary[BatchMemory, Layout] = weakref.WeakKeyDictionary()
        self._making = threading.Lock()

    def totals(self, shard: Shard) -> TotalsNow:
        """Of what the shard would draw now, the generation of its table, and how many rows it has.

        Raises:
            ReplayError: it does not say it.
        """
        return shard.asked(lambda table: table.totals_now(uniform=self._uniform, view=self._asked.view))

    @property
    def _uniform(self) -> bool:
        return self._asked.sampler == Uniform.name

    def __call__(self, shard: Shard, taken: int) -> tuple[BatchStream | PlacedCall, int]:
        """A stream of the shard of which so many rows were taken, and how many rows of its first batch were among them.

        Where rows are large, and all servers can write to memory of this process, it is a `PlacedCall`.

        Raises:
            SchemaError: the shard has rows of other fields than the others.
            ReplayError: it cannot be opened.
        """
        call = self._placed(shard) if self.places else None
        if call is not None:
            return call, 0
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

    def _placed(self, shard: Shard) -> PlacedCall | None:
        """A call over which the shard writes to memory of this process. None: from now on none does."""
        with self._making:
            memory = self.memory = self.memory or self._made_memory(shard)
        call = None if memory is None else shard.reads.placed(self._asked.rows, memory, fields=self._fields, uniform=self._uniform)
        if call is None or memory is None:
            self.places = False
            self.forget()
            return None
        with self._making:
            layout = self._layouts.setdefault(memory, call.layout)
        if layout != call.layout:
            call.break_off()
            raise SchemaError(f"the shards are no one buffer: rows of shard {shard.number} have other fields than those of another shard")
        return call

    def _made_memory(self, shard: Shard) -> BatchMemory | None:
        row = self._row_bytes(shard)
        size = self._asked.rows * (row + DRAWN_BYTES) + HEADER_BYTES
        slots = min(min(self.prefetch, MOST_PLACES // self._asked.rows) + SPARE_SLOTS, MOST_PLACED_BYTES // size, MOST_PLACED_SLOTS)
        if not shard.reads.wants_shared or self._asked.rows * row < LARGE_BATCH or slots <= SPARE_SLOTS:
            return None
        try:
            return BatchMemory(slots, size, SPARE_SLOTS)
        except OSError as error:
            log.warning("no memory for whole batches, so that their parts are copied: %s", error)
            return None

    def forget(self) -> None:
        """Gives up the memory: servers that were asked to write there may still do so. The next call makes another one."""
        with self._making:
            memory, self.memory = self.memory, None
        if memory is not None:
            memory.close()

    def _row_bytes(self, shard: Shard) -> int:
        schema = shard.reads.state().schema
        return 0 if schema is None else sum(field.row_bytes for field in schema.select(self._fields))

    def _suitable(self, shard: Shard) -> PullSize:
        row = self._row_bytes(shard)
        steps = 1 if self._asked.view is None else max(window.length for window in self._asked.view.windows.windows)
        size = self._asked.rows * (row * steps + DRAWN_BYTES)
        seeded, shared = self.seed is not None, shard.reads.wants_shared
        return PullSize.of(self._asked.rows, size, self._shards, self.prefetch, seeded=seeded, counted=self._counted, shared=shared)
