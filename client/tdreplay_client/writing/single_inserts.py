"""Inserts that are waited for: `add` and `add_batch`."""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial

import numpy as np
import numpy.typing as npt

from tdreplay.errors import InternalError, StreamLimitError
from tdreplay.limits import BLOCK_BYTES, LEAST_SHARED_BYTES
from tdreplay.schema import Columns, Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget, jittered
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.writing.insert_calls import SEGMENTS, InsertCall, largest_block, open_inserts
from tdreplay_client.writing.insert_engine import InsertEngine, Sending, left_of
from tdreplay_client.writing.insert_messages import InsertMessage, framed
from tdreplay_client.writing.insert_state import Batch, Part
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts

__all__ = ["SingleInserts"]

RETRY_SECONDS = 5.0


class _Insert(InsertEngine[Part]):
    """One batch on its way. Its blocks are parts of the batch, whose rows stay where the user has them."""

    def __init__(self, batch: Batch, unacknowledged: UnacknowledgedInserts, writer_id: str) -> None:
        super().__init__(unacknowledged.writer_ids.take(writer_id))
        self._first_ids = dict(batch.first_ids)
        self.given = batch._replace(first_ids=self._first_ids)
        self.begin(batch)

    def next_block(self, sending: Sending[Part], block_bytes: int) -> Part | None:
        """The next block to be sent. None: there is none, or so many are on their way that an acknowledgement comes first."""
        part = sending.next()
        if part is None and len(self.state.blocks) < SEGMENTS and (new := self.next_part(block_bytes)) is not None:
            self.take(new)
            part = sending.next()
        return part

    def fill(self, message: InsertMessage, part: Part) -> InsertMessage:
        """The message, with the rows of a part in it."""
        message.fill(self.given.sent_columns, part.start, part.stop)
        return message

    def stored(self, first_row_id: int, rows: int) -> None:
        """Notes that the first block is stored, and the row id of its first row.

        After an interrupt in between, the block is sent again, gets the same row ids, and is noted again.
        """
        for part in self.state.blocks[:1]:
            self._first_ids[part.start] = first_row_id
        self.acknowledge(rows)


class SingleInserts:
    """Inserts that are waited for, over a call that is held open: that takes half as long as a call for each.

    Where the server has no room for such a call, or another thread uses it, each insert is a call of its own.

    Args:
        connection: the connection to the server.
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

    @property
    def is_open(self) -> bool:
        """Whether a call is held open, over which the next insert goes; also where the server had no room for one a moment ago."""
        call = self._call
        return (call is not None and call.answers.active) or time.monotonic() < self._not_before

    def add(
        self, columns: Columns, schema: Schema, rows: int, *, priorities: npt.NDArray[np.float64] | None = None, writer_id: str = ""
    ) -> npt.NDArray[np.int64]:
        """Stores rows, and gives their row ids, int64 of shape [rows], when they are acknowledged. `writer_id`: as in `WriterIds.take`."""
        self._connection.check_open()
        insert = _Insert(self._unacknowledged.claim(columns, schema, rows, priorities), self._unacknowledged, writer_id)
        try:
            self._connection.retried(partial(self._attempt, insert))
            # Inside the try: an interrupt from now on finds rows that are stored, and they are noted.
            self._unacknowledged.writer_ids.give_back(insert.insert_ids)
            insert.lost()  # It and its call know each other: the rows would stay in the memory until the garbage collector comes.
            row_ids = insert.given.row_ids
        except BaseException as error:
            if not self._unacknowledged.note(left_of(insert.given, insert), error):
                self._unacknowledged.writer_ids.give_back(insert.insert_ids)
            raise
        return row_ids  # Nothing is called behind the try.

    def _attempt(self, insert: _Insert, budget: RetryBudget) -> None:
        if time.monotonic() >= self._not_before and not self._lock.locked():
            with self._lock:  # Another thread may have been quicker: then this one waits for it. An interrupt cannot leave it locked.
                if self._added(insert, budget):
                    return
        self._add_by_itself(insert, budget)

    def _added(self, insert: _Insert, budget: RetryBudget) -> bool:
        """Whether the rows are stored; False where the server has no room for a standing call."""
        try:
            _pipelined(self._opened(insert.given.schema, insert.given.rows, budget), insert)
        except StreamLimitError:  # The first thing that a call is told: none of the rows was looked at.
            self.close()
            self._not_before = time.monotonic() + jittered(RETRY_SECONDS)
            return False
        except BaseException:
            self.close()
            raise
        return True

    def _opened(self, schema: Schema, rows: int, budget: RetryBudget) -> InsertCall:
        """The call that is held open: a new one where there is none, where it ended, or where its segments are too small for these blocks."""
        size, call = largest_block(schema, rows), self._call  # The buffer may be closed meanwhile, by another thread.
        too_small = self._sharing.wanted and size >= LEAST_SHARED_BYTES and self._largest < size
        if call is None or not call.answers.active or too_small:
            self.close()
            self._call = call = open_inserts(self._connection, self._table, self._sharing, schema, rows, budget, standing=True)
            self._largest = size
        call.answers.budget = budget
        return call

    def _add_by_itself(self, insert: _Insert, budget: RetryBudget) -> None:
        if left_of(insert.given, insert).fits_one_block:
            self._add_one_block(insert, budget)
            return
        call = open_inserts(self._connection, self._table, self._sharing, insert.given.schema, insert.given.rows, budget)
        try:
            _pipelined(call, insert)
        finally:
            call.close()

    def _add_one_block(self, insert: _Insert, budget: RetryBudget) -> None:
        part = insert.next_block(insert.opened(), BLOCK_BYTES)
        if part is not None:
            head = pb.AddRequest(
                table=self._table,
                writer_id=part.insert_id.writer_id,
                sequence=part.insert_id.sequence,
                wait_seconds=budget.server_wait,
                has_priorities=insert.given.has_priorities(part),
            )
            message = insert.fill(framed(head, insert.given.layout(part), part.insert_id), part)
            answer = self._connection.unary("Add", message.encoded, budget)
            insert.stored(answer.first_row_id, answer.rows)

    def close(self) -> None:
        """Ends the call that is held open. Closing twice is allowed."""
        call, self._call = self._call, None
        if call is not None:
            call.close()


def _pipelined(call: InsertCall, insert: _Insert) -> None:
    """Sends what is not acknowledged, the next blocks while the server stores those before, and waits until all of it is."""
    sending, in_flight = insert.opened(), deque[InsertMessage]()
    while True:
        while (part := insert.next_block(sending, call.block_bytes)) is not None:
            message = call.messages.new(insert.given.layout(part), part.insert_id, has_priorities=insert.given.has_priorities(part))
            insert.fill(message, part)
            call.send(message)
            in_flight.append(message)
        if not in_flight:
            return
        answer = next(call.answers, None)
        if answer is None:
            raise InternalError("the server ended the call before it acknowledged all rows")
        insert.stored(answer.first_row_id, answer.rows)
        call.messages.release(in_flight.popleft())
