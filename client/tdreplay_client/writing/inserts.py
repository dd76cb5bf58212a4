"""Inserts: calls on which blocks go out and acknowledgements come back, and single inserts over one of them that is held open."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from tdreplay.block import Layout
from tdreplay.errors import InternalError, StreamLimitError
from tdreplay.insert_id import InsertId
from tdreplay.limits import BLOCK_BYTES, LEAST_SHARED_BYTES, SHARED_BLOCK_BYTES
from tdreplay.schema import Columns, Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.channel import Connection, end_call
from tdreplay_client.transport.retry_budget import RetryBudget, jittered
from tdreplay_client.transport.shared_memory import MappedSegments, Sharing, mapped
from tdreplay_client.writing.insert_ids import InsertIds
from tdreplay_client.writing.insert_messages import InsertMessage, block_layout, framed, rows_per_block
from tdreplay_client.writing.unacknowledged import Delivery, UnacknowledgedInserts

__all__ = ["WAKE_UP", "InsertCall", "Outgoing", "SingleInserts", "check_acknowledged", "open_inserts"]

Requests: TypeAlias = "queue.SimpleQueue[Any]"
Outgoing: TypeAlias = Callable[[Requests], Iterator[Any]]
"""Makes the messages of a call out of what is put into its queue; None ends it. Runs in a thread of gRPC."""

WAKE_UP: Any = object()
"""What is put there to say that there is something to be sent."""

SEGMENTS = 4
"""Blocks of shared memory that one call uses at most, and blocks of one insert that are on their way at once."""
RETRY_SECONDS = 5.0


class InsertCall:
    """An AddBatch call. Blocks are acknowledged in the order in which they were sent; nothing here waits for that.

    Attributes:
        answers: the acknowledgements.
        segments: how many blocks may lie in shared memory at once; 0: there is none.
        block_bytes: that the blocks of a large batch aim at.

    Args:
        connection: to the server.
        table: the table's name.
        standing: whether the server may refuse it in favour of other streams.
        segment_bytes: the size of the largest block, where shared memory is asked for; else 0.
        budget: how long the first answer may take; None: the connection's timeout.
        outgoing: makes its messages; None: they are what is sent.

    Raises:
        ReplayError: the server refuses the call.
        OSError: it offers shared memory that cannot be had from here.
    """

    def __init__(
        self, connection: Connection, table: str, *, standing: bool, segment_bytes: int, budget: RetryBudget | None, outgoing: Outgoing | None = None
    ) -> None:
        self._table, self._standing = table, standing
        self._requests: Requests = queue.SimpleQueue()
        try:
            self.answers = connection.stream("AddBatch", (outgoing or _as_put)(self._requests), budget)
        except BaseException:
            self._requests.put(None)  # An interrupt may leave a call behind, whose thread waits for requests.
            raise
        self._close = weakref.finalize(self, end_call, self._requests, self.answers)
        self._mapped = self._share(segment_bytes) if segment_bytes else None
        self.segments = 0 if self._mapped is None else self._mapped.count
        self.block_bytes = SHARED_BLOCK_BYTES if self.segments else BLOCK_BYTES
        self._free = list(range(self.segments))

    def _share(self, segment_bytes: int) -> MappedSegments | None:
        self._requests.put(pb.AddBatchRequest(table=self._table, standing=self._standing, shared_slots=SEGMENTS, slot_bytes=segment_bytes))
        try:
            return mapped(next(self.answers).shared_memory, self.answers)
        except BaseException:
            self.close()
            raise

    def new_message(self, block: Layout, insert_id: InsertId) -> InsertMessage:
        """A message with room for a block of that layout, in shared memory where there is a free segment for it."""
        head = pb.AddBatchRequest(table=self._table, standing=self._standing, writer_id=insert_id.writer_id, sequence=insert_id.sequence)
        if self._mapped is None or not self._free or not LEAST_SHARED_BYTES <= block.size <= self._mapped.segment_bytes:
            return framed(head, block, insert_id)
        head.slot = self._free.pop()
        memory = self._mapped.block(head.slot)[: block.size]
        return InsertMessage(head.SerializeToString(), memory, block.write_header(memory), insert_id, head.slot, self._mapped)

    def carries(self, message: InsertMessage) -> bool:
        """Whether a message can be sent over this call as it is: it does not lie in another one's memory."""
        return message.segments is None or message.segments is self._mapped

    def adopt(self, message: InsertMessage) -> InsertMessage:
        """A message that was made for this call or another one, as one that can be sent over this one: copied, where it lies in that one's memory."""
        if self.carries(message):
            return message
        adopted = self.new_message(message.layout, message.insert_id)
        adopted.memory[:] = message.memory
        return replace(adopted, units=message.units)

    def send(self, message: InsertMessage) -> None:
        """Sends a block. It must not be written any more."""
        self._requests.put(message.encoded)

    def wake(self) -> None:
        """Says that there is something to be sent."""
        self._requests.put(WAKE_UP)

    def is_behind(self, requests: Requests) -> bool:
        """Whether that is its queue."""
        return self._requests is requests

    def release(self, message: InsertMessage) -> None:
        """Gives back what a message took of this call's memory, whose rows were acknowledged, or that was never sent."""
        if message.segments is not None and message.segments is self._mapped:
            self._free.append(message.segment)

    def close(self) -> None:
        """Ends the call. Closing twice is allowed."""
        self._close()

    def retire(self) -> None:
        """Lets the call end by itself, within a moment. This thread does not go into gRPC, which does not bear an interrupt while it ends a call."""
        self._requests.put(None)
        self.answers.end_at(time.monotonic())


def open_inserts(
    connection: Connection,
    table: str,
    sharing: Sharing,
    schema: Schema,
    rows: int,
    budget: RetryBudget,
    *,
    standing: bool = False,
    most_rows: int = 0,
    outgoing: Outgoing | None = None,
) -> InsertCall:
    """A call for blocks of up to `rows` rows of `schema`, over shared memory where it can be had and they are large enough for it.

    Its segments then also have room for blocks of up to `most_rows` rows.
    """
    opened = partial(InsertCall, connection, table, standing=standing, budget=budget, outgoing=outgoing)
    if _largest_block(schema, rows) < LEAST_SHARED_BYTES:
        return opened(segment_bytes=0)
    size = _largest_block(schema, max(rows, most_rows))
    return sharing.tried(lambda shared: opened(segment_bytes=size if shared else 0))


def _as_put(requests: Requests) -> Iterator[Any]:
    return iter(requests.get, None)


def _largest_block(schema: Schema, rows: int) -> int:
    """Bytes of the largest block in which so many rows go through shared memory."""
    return block_layout(schema, min(rows, rows_per_block(schema, SHARED_BLOCK_BYTES))).size


class SingleInserts:
    """Inserts that are waited for, over a call that is held open: that takes half as long as a call for each.

    Where the server has no room for such a call, or another thread uses it, each insert is a call of its own.

    Args:
        connection: to the server.
        table: the table's name.
        sharing: whether shared memory is used.
        unacknowledged: the failed inserts of the buffer.
    """

    def __init__(self, connection: Connection, table: str, sharing: Sharing, unacknowledged: UnacknowledgedInserts) -> None:
        self._connection, self._table, self._sharing, self._unacknowledged = connection, table, sharing, unacknowledged
        self._lock = threading.Lock()
        self._call: InsertCall | None = None
        self._largest = 0  # Bytes of the block that it was opened for.
        self._not_before = 0.0

    def add(self, columns: Columns, schema: Schema, rows: int) -> None:
        """Stores rows, and returns when they are acknowledged."""
        self._connection.check_open()
        writer_ids = self._unacknowledged.writer_ids
        delivery, insert_ids = self._unacknowledged.claim(columns, schema, rows), writer_ids.take()
        try:
            self._connection.repeated(lambda budget: self._attempt(delivery, insert_ids, budget))
            writer_ids.give_back(insert_ids)  # Here: an interrupt from now on finds rows that are stored, and they are noted.
        except BaseException as error:
            if not self._unacknowledged.note(delivery, error):
                writer_ids.give_back(insert_ids)
            raise

    def _attempt(self, delivery: Delivery, insert_ids: InsertIds, budget: RetryBudget) -> None:
        if time.monotonic() >= self._not_before and not self._lock.locked():
            with self._lock:  # Another thread may have been quicker: then this one waits for it. An interrupt cannot leave it locked.
                if self._added(delivery, insert_ids, budget):
                    return
        self._add_by_itself(delivery, insert_ids, budget)

    def _added(self, delivery: Delivery, insert_ids: InsertIds, budget: RetryBudget) -> bool:
        """Whether the rows are stored; False where the server has no room for a standing call."""
        try:
            call = self._opened(delivery.schema, delivery.rows, budget)
            _pipelined(call, delivery, insert_ids)
        except StreamLimitError:  # The first thing that a call is told: none of the rows was looked at.
            self.close()
            self._not_before = time.monotonic() + jittered(RETRY_SECONDS)
            return False
        except BaseException:
            self.close()
            raise
        return True

    def _opened(self, schema: Schema, rows: int, budget: RetryBudget) -> InsertCall:
        """The call that is held open: a new one where there is none, where it ended, or where shared memory pays and its segments are too small."""
        size, call = _largest_block(schema, rows), self._call  # The buffer may be closed meanwhile, by another thread.
        too_small = self._sharing.wanted and size >= LEAST_SHARED_BYTES and self._largest < size
        if call is None or not call.answers.active or too_small:
            self.close()
            self._call = call = open_inserts(self._connection, self._table, self._sharing, schema, rows, budget, standing=True)
            self._largest = size
        call.answers.budget = budget
        return call

    def _add_by_itself(self, delivery: Delivery, insert_ids: InsertIds, budget: RetryBudget) -> None:
        if delivery.in_one_block:
            self._add_one_block(delivery, insert_ids, budget)
            return
        call = open_inserts(self._connection, self._table, self._sharing, delivery.schema, delivery.rows, budget)
        try:
            _pipelined(call, delivery, insert_ids)
        finally:
            call.close()

    def _add_one_block(self, delivery: Delivery, insert_ids: InsertIds, budget: RetryBudget) -> None:
        for part in delivery.blocks(BLOCK_BYTES, insert_ids):
            head = pb.AddRequest(table=self._table, writer_id=part.insert_id.writer_id, sequence=part.insert_id.sequence)
            message = framed(head, block_layout(delivery.schema, part.stop - part.start), part.insert_id)
            message.fill(delivery.columns, part.start, part.stop)
            answer = self._connection.unary("Add", message.encoded, budget)
            check_acknowledged(answer.rows, part.stop - part.start)
            delivery.acknowledge()

    def close(self) -> None:
        """Ends the call that is held open. Closing twice is allowed."""
        call, self._call = self._call, None
        if call is not None:
            call.close()


def _pipelined(call: InsertCall, delivery: Delivery, insert_ids: InsertIds) -> None:
    """Sends what is not acknowledged of a delivery, the next blocks while the server stores those before, and waits until all of it is."""
    in_flight: deque[InsertMessage] = deque()
    for part in delivery.blocks(call.block_bytes, insert_ids):
        if len(in_flight) >= SEGMENTS:
            _await_acknowledgement(call, in_flight, delivery)
        message = call.new_message(block_layout(delivery.schema, part.stop - part.start), part.insert_id)
        message.fill(delivery.columns, part.start, part.stop)
        call.send(message)
        in_flight.append(message)
    while in_flight:
        _await_acknowledgement(call, in_flight, delivery)


def _await_acknowledgement(call: InsertCall, in_flight: deque[InsertMessage], delivery: Delivery) -> None:
    answer = next(call.answers, None)
    if answer is None:
        raise InternalError("the server ended the call before it acknowledged all rows")
    part = delivery.parts[0]
    check_acknowledged(answer.rows, part.stop - part.start)
    call.release(in_flight.popleft())
    delivery.acknowledge()


def check_acknowledged(rows: int, sent: int) -> None:
    """Passes where a server acknowledged as many rows as a block has.

    Raises:
        InternalError: it did not.
    """
    if rows != sent:
        raise InternalError(f"the server acknowledged {rows} of {sent} rows")
