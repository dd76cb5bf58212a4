"""Inserts: calls on which blocks go out and acknowledgements come back, and single inserts over one of them that is held open."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from typing import Any

from tdreplay.block import Layout
from tdreplay.errors import InternalError, StreamLimitError
from tdreplay.limits import BLOCK_BYTES, LEAST_SHARED_BYTES, SHARED_BLOCK_BYTES
from tdreplay.schema import Columns, Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.channel import Connection, end_call
from tdreplay_client.parcels import Parcel, block_layout, block_ranges, framed, rows_per_block
from tdreplay_client.shared_memory import MappedSlots, Sharing

__all__ = ["InsertCall", "SingleInserts", "open_inserts"]

SLOTS = 4
"""Blocks of shared memory that one call uses at most."""
RETRY_SECONDS = 5.0


class InsertCall:
    """An AddBatch call. Blocks are acknowledged in the order in which they were sent; nothing here waits for that.

    Attributes:
        answers: the acknowledgements.
        slots: how many blocks may lie in shared memory at once; 0: there is none.
        block_bytes: that the blocks of a large batch aim at.

    Args:
        connection: to the server.
        table: the table's name.
        standing: whether the server may refuse it in favour of other streams.
        slot_bytes: the size of the largest block, where shared memory is asked for; else 0.

    Raises:
        ReplayError: the server refuses the call.
        OSError: it offers shared memory that cannot be had from here.
    """

    def __init__(self, connection: Connection, table: str, *, standing: bool, slot_bytes: int) -> None:
        self._head = pb.AddBatchRequest(table=table, standing=standing)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers = connection.stream("AddBatch", iter(self._requests.get, None))
        self._close = weakref.finalize(self, end_call, self._requests, self.answers)
        self._mapped = self._share(slot_bytes) if slot_bytes else None
        self.slots = 0 if self._mapped is None else self._mapped.slots
        self.block_bytes = SHARED_BLOCK_BYTES if self.slots else BLOCK_BYTES
        self._free = list(range(self.slots))

    def _share(self, slot_bytes: int) -> MappedSlots | None:
        self._requests.put(pb.AddBatchRequest(table=self._head.table, standing=self._head.standing, shared_slots=SLOTS, slot_bytes=slot_bytes))
        try:
            offer = next(self.answers).shared_memory
            return MappedSlots(offer) if offer.path else None
        except BaseException:
            self.close()
            raise

    def parcel(self, block: Layout) -> Parcel:
        """A message with room for a block of that layout, in shared memory where there is a slot for it."""
        if self._mapped is None or not self._free or not LEAST_SHARED_BYTES <= block.size <= self._mapped.slot_bytes:
            return framed(self._head, block)
        slot = self._free.pop()
        memory = self._mapped.block(slot)[: block.size]
        message = pb.AddBatchRequest(table=self._head.table, slot=slot).SerializeToString()
        return Parcel(message, memory, block.write_header(memory), slot)

    def send(self, parcel: Parcel) -> None:
        """Sends a block. It must not be written any more."""
        self._requests.put(parcel.message)

    def release(self, parcel: Parcel) -> None:
        """Gives back what a parcel took, whose rows were acknowledged, or that was never sent."""
        if parcel.slot is not None:
            self._free.append(parcel.slot)

    def close(self) -> None:
        """Ends the call. Closing twice is allowed."""
        self._close()


def open_inserts(
    connection: Connection, table: str, sharing: Sharing, schema: Schema, rows: int, *, standing: bool = False, most_rows: int = 0
) -> InsertCall:
    """A call for blocks of up to `rows` rows of `schema`, over shared memory where it can be had and they are large enough for it.

    Its slots then also have room for blocks of up to `most_rows` rows.
    """
    if _largest_block(schema, rows) < LEAST_SHARED_BYTES:
        return InsertCall(connection, table, standing=standing, slot_bytes=0)
    size = _largest_block(schema, max(rows, most_rows))
    return sharing.tried(lambda shared: InsertCall(connection, table, standing=standing, slot_bytes=size if shared else 0))


def _largest_block(schema: Schema, rows: int) -> int:
    """Bytes of the largest block in which so many rows go through shared memory."""
    return block_layout(schema, min(rows, rows_per_block(schema, SHARED_BLOCK_BYTES))).size


class SingleInserts:
    """Inserts that are waited for, over a call that is held open: that takes half as long as a call for each.

    Where the server has no room for such a call, or another thread uses it, each insert is a call of its own.
    """

    def __init__(self, connection: Connection, table: str, sharing: Sharing) -> None:
        self._connection, self._table, self._sharing = connection, table, sharing
        self._lock = threading.Lock()
        self._call: InsertCall | None = None
        self._largest = 0  # Bytes of the block that it was opened for.
        self._not_before = 0.0

    def add(self, columns: Columns, schema: Schema, rows: int) -> None:
        """Stores rows, and returns when they are acknowledged."""
        self._connection.check_open()
        if time.monotonic() >= self._not_before and self._lock.acquire(blocking=False):
            try:
                if self._added(columns, schema, rows):
                    return
            finally:
                self._lock.release()
        self._add_by_itself(columns, schema, rows)

    def _added(self, columns: Columns, schema: Schema, rows: int) -> bool:
        """Whether the rows are stored; False where the server has no room for a standing call."""
        try:
            call = self._opened(schema, rows)
            _pipelined(call, columns, schema, rows)
        except StreamLimitError:  # The first thing that a call is told: none of the rows was looked at.
            self.close()
            self._not_before = time.monotonic() + RETRY_SECONDS
            return False
        except BaseException:
            self.close()
            raise
        return True

    def _opened(self, schema: Schema, rows: int) -> InsertCall:
        """The call that is held open: a new one where there is none, where it ended, or where shared memory pays and its slots are too small."""
        size = _largest_block(schema, rows)
        too_small = self._sharing.wanted and size >= LEAST_SHARED_BYTES and self._largest < size
        if self._call is None or not self._call.answers.active or too_small:
            self.close()
            self._call, self._largest = open_inserts(self._connection, self._table, self._sharing, schema, rows, standing=True), size
        return self._call

    def _add_by_itself(self, columns: Columns, schema: Schema, rows: int) -> None:
        if rows <= rows_per_block(schema):
            parcel = framed(pb.AddRequest(table=self._table), block_layout(schema, rows))
            parcel.fill(columns, 0, rows)
            self._connection.unary("Add", parcel.message)
            return
        call = open_inserts(self._connection, self._table, self._sharing, schema, rows)
        try:
            _pipelined(call, columns, schema, rows)
        finally:
            call.close()

    def close(self) -> None:
        """Ends the call that is held open. Closing twice is allowed."""
        if self._call is not None:
            self._call.close()
            self._call = None


def _pipelined(call: InsertCall, columns: Columns, schema: Schema, rows: int) -> None:
    """Sends rows in blocks, the next ones while the server stores those before, and waits until all are acknowledged."""
    in_flight: deque[tuple[Parcel, int]] = deque()
    for start, stop in block_ranges(schema, rows, call.block_bytes):
        if len(in_flight) >= SLOTS:
            _await_acknowledgement(call, in_flight)
        parcel = call.parcel(block_layout(schema, stop - start))
        parcel.fill(columns, start, stop)
        call.send(parcel)
        in_flight.append((parcel, stop - start))
    while in_flight:
        _await_acknowledgement(call, in_flight)


def _await_acknowledgement(call: InsertCall, in_flight: deque[tuple[Parcel, int]]) -> None:
    answer = next(call.answers, None)
    parcel, rows = in_flight.popleft()
    call.release(parcel)
    if answer is None or answer.rows != rows:
        raise InternalError(f"the server acknowledged {answer.rows if answer else 0} of {rows} rows")
