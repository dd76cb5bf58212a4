"""Pipelined inserts: rows are coalesced into blocks, and blocks are on their way while more rows are appended."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType

import torch
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import ClosedError, ReplayError
from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.schema import Schema
from tdreplay_client.channel import Connection, start_reader
from tdreplay_client.fitting import Fitting
from tdreplay_client.identities import MOST_UNACKNOWLEDGED, Number
from tdreplay_client.inserts import InsertCall, open_inserts
from tdreplay_client.parcels import Parcel, block_layout, rows_per_block
from tdreplay_client.patience import SECOND_LOOK, Patience
from tdreplay_client.shared_memory import Sharing
from tdreplay_client.staging import Staging
from tdreplay_client.unsettled import Delivery, Piece, Unsettled

__all__ = ["Writer"]

POLL_SECONDS = 0.5
BUSY = 2
"""Messages in flight from which on portions share one: one that the server works on, and one that waits for it."""
SHARED_PORTIONS = 8
SMALL_BYTES = 256 << 10
"""The most of them, and the most bytes, in a message that is shared."""


class Writer(OfOneProcess):
    """Appends rows to a table without waiting for each. One thread appends; the rows of one writer are stored in the order in which they came.

    Rows are stored when `flush` returns (or the ``with`` block ends without an error), each of them once. Where the connection is lost, the writer
    opens another one by itself, and sends what was not acknowledged again; `append` and `extend` go on meanwhile, for as long as there is room. What
    does not come right within the connection's timeout, or was refused, is raised by the next call; the error's ``rows`` are those that were not
    acknowledged (a TensorDict; after a lost connection or a timeout, some of them may be stored). The writer is then at its end. Given all of these
    rows, `add_batch` of the same buffer and `extend` of another of its writers store them once.

    What comes is counted in portions: `flush_rows` appended rows are one, and so is a batch of `extend`, or each block (2 MiB) of a larger one.
    A portion is sent at once while the connection has little to do. While it is busy, small portions wait a moment and share a message: the rows that
    wait for their acknowledgement are the same, the messages are fewer.

    Args:
        connection: to the server.
        table: the table's name.
        sharing: whether blocks go through memory that is shared with the server, where they are large enough.
        unsettled: the failed inserts of the buffer.
        fitting: what the buffer knows of the table's rows.
        flush_rows: rows are sent when there are so many, or a block of them.
        flush_seconds: or when the oldest of them waited for so long.
        max_in_flight: portions that may wait for their acknowledgement; `append` blocks beyond that. Above 32 it means 32: the server remembers the
            numbers of so many blocks, and as many again.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a writer there"

    def __init__(
        self,
        connection: Connection,
        table: str,
        sharing: Sharing,
        unsettled: Unsettled,
        fitting: Fitting,
        flush_rows: int,
        flush_seconds: float,
        max_in_flight: int,
    ) -> None:
        connection.check_open()
        self._connection, self._table, self._sharing, self._unsettled = connection, table, sharing, unsettled
        self._fitting = fitting
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        self._most = self._max_in_flight = min(max_in_flight, MOST_UNACKNOWLEDGED)
        self._identity = unsettled.identities.take()
        self._changed = threading.Condition()
        self._schema: Schema | None = None
        self._call: InsertCall | None = None
        self._call_rows = 0  # Rows of the blocks that it was opened for.
        self._connected = False
        self._steady = True  # The call that is open now was acknowledged something, or is the first one.
        self._staging: Staging | None = None
        self._oldest = 0.0
        self._in_flight: deque[Parcel] = deque()
        self._sent = 0  # The first ones of them: over the call that is open now.
        self._rest: tuple[Delivery, int] | None = None  # A batch that is being added, and where its part begins that is in no block yet.
        self._portions = 0  # Complete ones, staged or in flight.
        self._acknowledged = 0
        self._error: ReplayError | None = None
        self._closed = False

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the server. Known once rows were added."""
        return self._call is not None and self._call.slots > 0

    def append(self, row: Row) -> None:
        """Adds one row: a TensorDict without a row dimension, or a dict, as `add` takes them. Its memory is copied.

        Blocks while `max_in_flight` blocks wait for their acknowledgement, at most the connection's timeout.

        Raises:
            SchemaError, CodecError: the row does not fit the writer's first one, or cannot travel. It is not added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, this one among them.
        """
        self._connection.owner.check()
        given = given_row(row)
        with self._changed:
            self._check_open()
            schema = self._schema if self._schema is not None and self._call is not None else self._open_for(given)
            staging = self._staged(schema)
            staging.append(given)
            self._schema = schema  # Only now: a first row that was refused fixes nothing.
            self._check()
            if staging.full or staging.portion_rows == self._flush_rows:
                self._end_portion(staging)

    def extend(self, batch: Row) -> None:
        """Adds n rows: a TensorDict of batch size [n, ...], or a dict, as `add_batch` takes them. Its memory is copied. Blocks as `append` does.

        Raises:
            SchemaError, CodecError: the rows do not fit the writer's first one, or cannot travel. None is added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, these among them.
        """
        self._connection.owner.check()
        given = given_rows(batch)
        with self._changed:
            self._check_open()
            columns = given.columns(self._schema or self._first_schema(given), cast=self._fitting.cast)
            schema = self._schema or given.schema(columns)
            schema.check(given.schema(columns))
            self._schema = schema
            delivery = self._unsettled.claim(columns, schema, given.number)
            self._rest = (delivery, delivery.done)
            try:
                self._check()
                self._add(delivery)
            except BaseException as error:
                if not isinstance(error, ReplayError) or error.rows is None:
                    self._unsettled.note(delivery, error)
                raise
            finally:
                self._rest = None

    def flush(self, timeout: float | None = None) -> None:
        """Sends what was appended, and waits until all of it is stored, at most `timeout` seconds (None: the connection's timeout) for each answer.

        Raises:
            DeadlineError: it took longer. The rows are the error's ``rows``.
            ReplayError: rows were not stored; they are the error's ``rows``.
        """
        self._connection.owner.check()
        with self._changed:
            self._check()
            self._send_staged()
            self._wait(lambda: not self._in_flight, timeout)

    def close(self) -> None:
        """Ends the writer at once: rows that were not flushed may be lost. Closing twice is allowed; in a fork of its process nothing happens."""
        if not self._connection.owner.is_here:
            return
        with self._changed:
            if not self._closed and not self._in_flight:
                self._unsettled.identities.give_back(self._identity)
            self._closed = True
            self._changed.notify_all()
            if self._call is not None:
                self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None and self._connection.owner.is_here:
                self.flush()
        finally:
            self.close()

    # -- with the lock held -------------------------------------------------------------------------------------------------------------------

    def _opened(self, schema: Schema, rows: int) -> InsertCall:
        """The call, opened for blocks of the first rows that come, and its two threads started."""
        if self._call is None:
            opened = partial(open_inserts, self._connection, self._table, self._sharing, schema, rows, most_rows=MAX_BATCH_SIZE)
            try:
                call = self._use(self._connection.repeated(opened))
            except ReplayError as error:
                self._error = error.with_traceback(None)
                self._check()
                raise
            start_reader(self._follow, opened)
            threading.Thread(target=self._flush_in_time, name="tdreplay-writer", daemon=True).start()
            return call
        return self._call

    def _open_for(self, row: Given) -> Schema:
        """Opens the call for a first row, which is handed back where there is none to be had, and gives the schema that it fixes."""
        columns = row.columns(self._schema or self._first_schema(row), cast=self._fitting.cast)
        schema = self._schema or row.schema(columns)
        schema.check(row.schema(columns))
        self._rest = (Delivery(columns, schema, 1), 0)
        try:
            self._opened(schema, self._flush_rows)
        finally:
            self._rest = None
        return schema

    def _first_schema(self, rows: Given) -> Schema | None:
        """The table's schema, where the first rows need it; they are handed back where the server does not say it."""
        try:
            return self._fitting.for_first(rows)
        except ReplayError as error:
            columns = rows.columns(None, cast=False)
            self._rest = (Delivery(columns, rows.schema(columns), rows.number), 0)
            self._error = error.with_traceback(None)
            self._check()
            raise

    def _use(self, call: InsertCall) -> InsertCall:
        """Makes it the call over which blocks go, from the first one on that was not acknowledged."""
        self._call, self._connected, self._sent = call, True, 0
        # Beside those on their way, one block is being filled, and one may have to be cut short.
        self._max_in_flight = min(self._most, max(1, call.slots - 2)) if call.slots else self._most
        self._pump()
        return call

    def _pump(self) -> None:
        """Sends what was not sent over this call."""
        while self._connected and self._call is not None and self._sent < len(self._in_flight):
            parcel = self._in_flight[self._sent] = self._call.adopt(self._in_flight[self._sent])
            self._call.send(parcel)
            self._sent += 1

    def _staged(self, schema: Schema, rows: int = 1) -> Staging:
        """The block that is being filled, with room for `rows` rows more: a new one where the old one has none."""
        if self._staging is not None and self._staging.room < rows:
            self._send_staged()
        if self._staging is None:
            portion = max(rows, self._flush_rows)
            room = max(min(portion, rows_per_block(schema)), min(portion * SHARED_PORTIONS, SMALL_BYTES // max(1, schema.row_bytes)))
            self._staging = Staging(self._opened(schema, portion), schema, room, self._identity.next(), cast=self._fitting.cast)
            self._oldest = time.monotonic()
            self._changed.notify_all()
        return self._staging

    def _add(self, delivery: Delivery) -> None:
        """Adds a batch: a small one to the block that is being filled, another one, and one that went out before, in blocks of its own."""
        if delivery.schema.row_bytes * delivery.rows * 2 <= SMALL_BYTES and not delivery.resumed:
            staging = self._staged(delivery.schema, delivery.rows)
            staging.extend(delivery.columns, delivery.rows)
            self._rest = None
            self._end_portion(staging)
            return
        self._send_staged()
        for piece in delivery.blocks(self._opened(delivery.schema, delivery.rows).block_bytes, self._identity):
            parcel = self._opened(delivery.schema, delivery.rows).parcel(block_layout(delivery.schema, piece.stop - piece.start), piece.number)
            parcel.fill(delivery.columns, piece.start, piece.stop)
            self._rest = (delivery, piece.stop)
            self._send(replace(parcel, portions=1))

    def _end_portion(self, staging: Staging) -> None:
        """Sends the block that is being filled, unless it is worth while to wait for more."""
        staging.end_portion()
        if staging.full or len(self._in_flight) < BUSY or self._portions + staging.portions > self._max_in_flight:
            self._send_staged()

    def _send_staged(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None and staging.rows:
            self._send(replace(staging.parcel(), portions=max(1, staging.portions)))

    def _send(self, parcel: Parcel) -> None:
        self._in_flight.append(parcel)  # First, so that it is handed back where there is no room for it in time.
        self._portions += parcel.portions
        self._changed.notify_all()
        self._wait(lambda: self._portions <= self._max_in_flight or len(self._in_flight) == 1)
        self._pump()

    def _wait(self, done: Callable[[], bool], timeout: float | None = None) -> None:
        """Waits until done(), at most `timeout` seconds (None: the connection's timeout) for each acknowledgement."""
        seconds = self._connection.timeout if timeout is None else timeout
        while not done():
            before = self._acknowledged
            for limit in (seconds, SECOND_LOOK):
                self._changed.wait_for(lambda: done() or self._error or self._closed or self._acknowledged != before, limit)  # noqa: B023
            if not done() and self._acknowledged == before and not (self._error or self._closed):
                gone = timeout is None and not self._connected
                self._error = self._connection.gone("is lost, and did not come back") if gone else self._connection.late()
            self._check()

    def _check_open(self) -> None:
        if self._closed and self._error is None:
            raise ClosedError("the writer is closed")

    def _check(self) -> None:
        self._check_open()
        if self._error is not None:
            error, self._error = self._error, None
            self._hand_back(error)
            self.close()
            try:
                raise error
            finally:
                del error  # Its traceback holds this frame: together they would keep the shared memory mapped.

    def _hand_back(self, error: ReplayError) -> None:
        """Gives an error the rows that were not acknowledged, and notes under which numbers they are known."""
        staged = [self._staging.parcel()] if self._staging is not None and self._staging.rows else []
        parts = [(parcel.number, parcel.rows()) for parcel in (*self._in_flight, *staged)]
        batches, numbered = [rows for _, rows in parts], [(number, len(rows)) for number, rows in parts]
        if self._rest is not None:
            delivery, start = self._rest
            batches += delivery.batches(start)
            numbered += [(piece.number, piece.stop - piece.start) for piece in delivery.pieces if piece.start >= start]
        if batches:
            error.rows = torch.cat(batches)
            self._unsettled.note(_delivery(error.rows, numbered), error)

    # -- the two threads ----------------------------------------------------------------------------------------------------------------------

    def _follow(self, opened: Callable[[Patience], InsertCall]) -> None:
        """Takes acknowledgements for as long as the writer lives, over another call where one was lost."""
        try:
            self._connection.repeated(lambda patience: self._take_acknowledgements(opened, patience))
        except ReplayError as error:
            with self._changed:
                if not self._closed:
                    self._error = error.with_traceback(None)
                self._changed.notify_all()

    def _take_acknowledgements(self, opened: Callable[[Patience], InsertCall], patience: Patience) -> None:
        call = self._current(opened, patience)
        if call is None:
            return
        try:
            for _ in call.answers.patiently():
                with self._changed:
                    self._acknowledge(call)
                patience.answered()
            if not self._closed:
                raise self._connection.gone("ended the call")
        except ReplayError:
            self._lose(call, patience)
            raise

    def _current(self, opened: Callable[[Patience], InsertCall], patience: Patience) -> InsertCall | None:
        """The call that is open; where it was lost, another one, once there is something to send over it. None where the writer is at its end."""
        with self._changed:
            if self._connected:
                return self._call
            while not (self._in_flight or self._closed):  # Nothing is late before something is to be sent.
                self._changed.wait(POLL_SECONDS)
                self._connection.check_open()
                patience.renew()
            if self._closed:
                return None
        call = opened(patience)
        with self._changed:
            if self._closed:
                call.close()
                return None
            return self._use(call)

    def _lose(self, call: InsertCall, patience: Patience) -> None:
        """Notes that a call is lost. The time that the server has to come back begins, unless it began with a loss before, and nothing came since."""
        call.close()
        with self._changed:
            self._connected = False
            if self._steady:
                patience.renew()
            self._steady = False

    def _acknowledge(self, call: InsertCall) -> None:
        parcel = self._in_flight.popleft()
        call.release(parcel)
        self._sent -= 1
        self._portions -= parcel.portions
        self._acknowledged += 1
        self._steady = True
        self._send_what_waits()
        self._changed.notify_all()

    def _send_what_waits(self) -> None:
        """Sends the block that is being filled, where a portion of it is complete, and the connection is not busy any more."""
        staging = self._staging
        if staging is not None and staging.portions and len(self._in_flight) < BUSY and self._portions + staging.portions <= self._max_in_flight:
            self._send_staged()

    def _flush_in_time(self) -> None:
        with self._changed:
            while not (self._closed or self._error):
                left = None if self._staging is None else self._oldest + self._flush_seconds - time.monotonic()
                if left is not None and left <= 0 and self._room_for_staged():
                    self._send_staged()
                else:
                    self._changed.wait(None if left is None else max(left, 0.001))

    def _room_for_staged(self) -> bool:
        """Whether the block that is being filled can be sent without a wait."""
        staged = 0 if self._staging is None else max(1, self._staging.portions)
        return not self._in_flight or self._portions + staged <= self._max_in_flight


def _delivery(rows: TensorDict, numbered: list[tuple[Number, int]]) -> Delivery:
    """These rows, of which the first ones were cut into blocks of so many, of these numbers."""
    given = given_rows(rows)
    columns = given.columns(None, cast=False)
    stops = list(itertools.accumulate(count for _, count in numbered))
    pieces = [Piece(number, stop - count, stop) for (number, count), stop in zip(numbered, stops, strict=True)]
    return Delivery(columns, given.schema(columns), len(rows), pieces=pieces)
