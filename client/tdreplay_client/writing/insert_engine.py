"""What became of the blocks of an insert or a writer: numbered, sent, acknowledged, lost, sent again. No thread, socket, lock or clock is in here.

`add`, `add_batch` and writers run on this engine. They send what it gives them, and tell it what came back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar, cast

from tdreplay.errors import InternalError
from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.schema import Schema
from tdreplay_client.writing.insert_ids import MAX_UNACKNOWLEDGED, InsertIds
from tdreplay_client.writing.insert_messages import InsertMessage, InsertMessages, rows_per_block
from tdreplay_client.writing.insert_state import Batch, Block, InsertState, Part
from tdreplay_client.writing.staging import Staging

__all__ = ["SMALL_BYTES", "FlushPolicy", "InsertEngine", "Sending", "WriterEngine", "left_of"]

B = TypeVar("B", bound=Block)

BUSY_BLOCKS = 2
"""Blocks in flight from which on units share one: one block that the server works on, and one that waits for it."""
SHARED_UNITS = 8
SMALL_BYTES = 256 << 10
"""The most units, and the most bytes, of a block that units share."""


class Sending(Generic[B]):
    """What went out over one call: all blocks that were not acknowledged when the call was opened, in order, then the new ones."""

    def __init__(self, engine: InsertEngine[B], position: int) -> None:
        self._engine, self.position = engine, position

    def next(self) -> B | None:
        """The next block to be sent over this call. None: there is none yet, or another call took the place of this one."""
        state = self._engine.state
        at = self.position - state.acknowledged
        if self._engine.sending is not self or not 0 <= at < len(state.blocks):
            return None
        self.position += 1  # Before it goes out: its acknowledgement may come at once.
        self._engine.handed = max(self._engine.handed, self.position)
        if self._engine.sending is not self:  # Looked at again behind `handed`: either `withdraw` knows of this block, or it is not sent.
            return None
        block: B = state.blocks[at]
        return block


class InsertEngine(Generic[B]):
    """The rows of one insert or one writer, until they are acknowledged.

    Each method makes one assignment of a whole `state`, as its last step. Where several threads use an engine, one at a time may change it.

    Attributes:
        state: the rows.
        sending: what went out over the call that is open; None: none is.
        handed: the number of blocks, the acknowledged ones among them, that any call was given: others were never sent.

    Args:
        insert_ids: the ids for new blocks.
    """

    def __init__(self, insert_ids: InsertIds) -> None:
        self.insert_ids = insert_ids
        self.handed = 0
        self.state = InsertState()
        self.sending: Sending[B] | None = None

    def begin(self, batch: Batch) -> None:
        """Begins to add a batch, after all blocks that were taken."""
        self.state = self.state.with_batch(batch if batch.done < batch.rows else None)

    def next_part(self, block_bytes: int) -> Part | None:
        """The next rows of the batch, about `block_bytes` of them, for `take`. None: there are none left.

        Rows that have an insert id, because they went out before, keep it and are cut as they were.
        """
        batch = self.state.batch
        if batch is None:
            return None
        if batch.parts:
            return batch.parts[0]
        return Part(self.insert_ids.next(), batch.done, batch.block_stop(block_bytes))

    def take(self, block: B) -> None:
        """Takes the next rows of the batch, as a block to be sent."""
        self.state = self.state.with_batch_block(block)

    def opened(self) -> Sending[B]:
        """Notes that a call is open. What is not acknowledged goes over it, from the first block on."""
        self.sending = Sending(self, self.state.acknowledged)
        return self.sending

    def lost(self) -> None:
        """Notes that the call is lost, and with it all acknowledgements that did not come."""
        self.sending = None

    def acknowledge(self, rows: int) -> B:
        """Notes that the first block is stored, as the server says, and gives that block.

        Raises:
            InternalError: the server says so of a block that was not sent, or of another number of rows.
        """
        state, sending = self.state, self.sending
        if not state.blocks or sending is None or sending.position <= state.acknowledged:
            raise InternalError("the server acknowledged a block that was not sent")
        block: B = state.blocks[0]
        if rows != block.rows:
            raise InternalError(f"the server acknowledged {rows} of {block.rows} rows")
        self.state = state.without_first()
        return block


def left_of(batch: Batch, engine: InsertEngine[Part]) -> Batch:
    """What is not acknowledged of the one batch that an engine was given."""
    rest = engine.state.batch
    parts = (*engine.state.blocks, *(() if rest is None else rest.parts))
    return batch._replace(done=parts[0].start if parts else batch.rows if rest is None else rest.done, parts=parts)


SPARE_UNITS = 4
"""A row, and the final observations behind it, end fewer units."""


class FlushPolicy(NamedTuple):
    """When a writer sends rows, and how many may wait.

    Attributes:
        flush_rows: so many appended rows are a unit, which is sent as soon as it is complete.
        flush_seconds: rows are sent when the oldest of them waited that long.
        max_in_flight: units that may wait for their acknowledgement.
        cast: whether values of other dtypes are converted.
        block_rows: the most rows of a block.
    """

    flush_rows: int
    flush_seconds: float
    max_in_flight: int
    cast: bool = False
    block_rows: int = MAX_BATCH_SIZE


class WriterEngine(InsertEngine[InsertMessage]):
    """The engine of a writer: appended rows gather in a block, and units share a block while the server is busy.

    Args:
        insert_ids: the ids for new blocks.
        policy: when rows are sent.
    """

    def __init__(self, insert_ids: InsertIds, policy: FlushPolicy) -> None:
        super().__init__(insert_ids)
        self._policy = policy
        self._limit = self._max_in_flight = min(policy.max_in_flight, MAX_UNACKNOWLEDGED)

    @property
    def staging(self) -> Staging | None:
        """The block that is being filled."""
        return cast("Staging | None", self.state.staged)

    @property
    def units(self) -> int:
        """The complete units in `state.blocks`."""
        return sum(block.units for block in self.state.blocks)

    @property
    def is_untouched(self) -> bool:
        """Whether no row was taken so far."""
        return not self.state.taken and (self.staging is None or not self.staging.rows)

    def limit(self, segments: int) -> None:
        """Adapts the number of units in flight to the segments of shared memory; 0: there is none."""
        # Beside those on their way, one block is being filled, and one may have to be cut short.
        self._max_in_flight = min(self._limit, max(1, segments - 2)) if segments else self._limit

    def stage(self, messages: InsertMessages, schema: Schema, rows: int, now: float, *, has_priorities: bool = False) -> None:
        """Begins a block that is to be filled, with room for at least `rows` rows, with their priorities or without."""
        unit = max(rows, self._policy.flush_rows)
        room = max(min(unit, rows_per_block(schema)), min(unit * SHARED_UNITS, SMALL_BYTES // max(1, schema.row_bytes)))
        room = min(room, max(rows, self._policy.block_rows))
        staging = Staging(messages, schema, room, self.insert_ids.next(), now, cast=self._policy.cast, has_priorities=has_priorities)
        self.state = self.state.with_staged(staging)

    def end_unit(self, staging: Staging) -> bool:
        """Ends a unit. Whether the block that is being filled is to be sent now, and not to wait for more units."""
        staging.end_unit()
        return staging.full or not self.is_busy or self.units + staging.units > self._max_in_flight

    def seal(self) -> None:
        """Takes the rows that were staged, as a block to be sent."""
        staging = self.staging
        if staging is not None and staging.rows:
            block = replace(staging.message(), units=max(1, staging.units))
            self.state = self.state.with_staged_block(block)
            staging.release_unless(block)

    def withdraw(self) -> list[InsertMessage]:
        """Takes back what was never sent, as blocks: while a call is open only the rows that were staged."""
        state, staging = self.state, self.staging
        kept = len(state.blocks) if self.sending is not None else max(0, self.handed - state.acknowledged)
        withdrawn = [*state.blocks[kept:], *([staging.message()] if staging is not None and staging.rows else [])]
        self.state = InsertState(state.blocks[:kept], state.acknowledged, state.batch)
        return withdrawn

    def drop_staging(self) -> None:
        """Forgets the block that is being filled."""
        staging = self.staging
        self.state = self.state.with_staged(None)
        if staging is not None:
            staging.release_unless(None)

    def adopt(self, messages: InsertMessages, block: InsertMessage) -> InsertMessage:
        """A block that has to be sent, as a message that can go over another call than the one it was made for."""
        adopted = messages.adopt(block)
        blocks = self.state.blocks
        at = next((at for at, other in enumerate(blocks) if other is block), None)
        if at is not None:
            self.state = self.state.with_replaced(at, adopted)
        return adopted

    @property
    def is_busy(self) -> bool:
        """Whether the connection has so much to do that small units had better share a block."""
        return len(self.state.blocks) >= BUSY_BLOCKS

    @property
    def is_full(self) -> bool:
        """Whether so much is in flight that no more rows should come. One block may always be."""
        return self.units > self._max_in_flight and len(self.state.blocks) != 1

    @property
    def has_plenty_of_room(self) -> bool:
        """Whether some rows more do not make it full, whatever units they end."""
        staged = 0 if self.staging is None else self.staging.units
        return self.units + staged + SPARE_UNITS <= self._max_in_flight

    @property
    def has_room(self) -> bool:
        """Whether the block that is being filled can be sent without a wait."""
        staging = self.staging
        return staging is not None and (not self.state.blocks or self.units + max(1, staging.units) <= self._max_in_flight)

    @property
    def has_unit_due(self) -> bool:
        """Whether a complete unit waits that can be sent now, because the connection is not busy any more."""
        return self.staging is not None and self.staging.units > 0 and not self.is_busy and self.has_room

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the block that is being filled is to be sent, below 0 where that is past. None: it has to wait for an acknowledgement."""
        staging = self.staging
        return staging.since + self._policy.flush_seconds - now if staging is not None and self.has_room else None
