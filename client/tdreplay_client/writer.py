"""Pipelined inserts: rows are coalesced into blocks, and blocks are on their way while more rows are appended."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import torch
from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.columns import from_rows, to_tensordict
from tdreplay.errors import ClosedError, ReplayError
from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.schema import Columns, Schema
from tdreplay_client.channel import Connection, start_reader
from tdreplay_client.inserts import InsertCall, open_inserts
from tdreplay_client.parcels import Parcel, block_layout, block_ranges, rows_per_block
from tdreplay_client.shared_memory import Sharing
from tdreplay_client.staging import Row, Staging, schema_of, values_of

__all__ = ["Writer"]

BUSY = 2
"""Messages in flight from which on portions share one: one that the server works on, and one that waits for it."""
SHARED_PORTIONS = 8
SMALL_BYTES = 256 << 10
"""The most of them, and the most bytes, in a message that is shared."""


class Writer:
    """Appends rows to a table without waiting for each. One thread appends; the rows of one writer are stored in the order in which they came.

    Rows are stored when `flush` returns (or the ``with`` block ends without an error). What goes wrong on the way is raised by the next call; the
    error's ``rows`` are those that were not acknowledged (a TensorDict; after a lost connection, some of them may be stored). The writer is then at
    its end.

    What comes is counted in portions: `flush_rows` appended rows are one, and so is a batch of `extend`, or each block (2 MiB) of a larger one.
    A portion is sent at once while the connection has little to do. While it is busy, small portions wait a moment and share a message: the rows that
    wait for their acknowledgement are the same, the messages are fewer.

    Args:
        connection: to the server.
        table: the table's name.
        sharing: whether blocks go through memory that is shared with the server, where they are large enough.
        flush_rows: rows are sent when there are so many, or a block of them.
        flush_seconds: or when the oldest of them waited for so long.
        max_in_flight: portions that may wait for their acknowledgement; `append` blocks beyond that.
    """

    def __init__(self, connection: Connection, table: str, sharing: Sharing, flush_rows: int, flush_seconds: float, max_in_flight: int) -> None:
        connection.check_open()
        self._connection, self._table, self._sharing = connection, table, sharing
        self._flush_rows, self._flush_seconds, self._max_in_flight = flush_rows, flush_seconds, max_in_flight
        self._changed = threading.Condition()
        self._schema: Schema | None = None
        self._call: InsertCall | None = None
        self._staging: Staging | None = None
        self._oldest = 0.0
        self._in_flight: deque[Parcel] = deque()
        self._portions = 0  # Complete ones, staged or in flight.
        self._acknowledged = 0
        self._error: ReplayError | None = None
        self._closed = False

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the server. Known once rows were added."""
        return self._call is not None and self._call.slots > 0

    def append(self, row: Row) -> None:
        """Adds one row: a TensorDict without a row dimension, or a dict (nested or not) of tensors, arrays or scalars. Its memory is copied.

        Blocks while `max_in_flight` blocks wait for their acknowledgement, at most the connection's timeout.

        Raises:
            SchemaError, CodecError: the row does not fit the writer's first one, or cannot travel. It is not added; the writer goes on.
            ReplayError: earlier rows were not stored; they are the error's ``rows``.
        """
        values, row_shape = values_of(row)
        with self._changed:
            self._check()
            if self._schema is None:
                self._schema = schema_of(values, row_shape)
            staging = self._staged(self._schema)
            staging.append(values)
            if staging.full or staging.portion_rows == self._flush_rows:
                self._end_portion(staging)

    def extend(self, batch: TensorDictBase) -> None:
        """Adds n rows: a TensorDict of batch size [n, ...], after those that were appended. Its memory is copied. Blocks as `append` does.

        Raises:
            SchemaError, CodecError: the rows do not fit the writer's first one, or cannot travel. None is added; the writer goes on.
            ReplayError: earlier rows were not stored; they are the error's ``rows``.
        """
        columns, row_shape = from_rows(batch)
        schema = Schema.of(columns, row_shape)
        with self._changed:
            self._check()
            if self._schema is None:
                self._schema = schema
            self._schema.check(schema)
            rows: int = batch.batch_size[0]
            if schema.row_bytes * rows * 2 <= SMALL_BYTES:
                self._stage(columns, rows)
                return
            self._send_staged()
            call = self._opened(schema, rows)
            for start, stop in block_ranges(schema, rows, call.block_bytes):
                parcel = call.parcel(block_layout(schema, stop - start))
                parcel.fill(columns, start, stop)
                try:
                    self._send(call, replace(parcel, portions=1))
                except ReplayError as error:
                    rest = {name: column[stop:].cpu() for name, column in columns.items()}
                    unsent = to_tensordict(rest, (rows - stop, *row_shape), torch.device("cpu"))
                    error.rows = unsent if error.rows is None else torch.cat([error.rows, unsent])
                    raise

    def flush(self, timeout: float | None = None) -> None:
        """Sends what was appended, and waits until all of it is stored, at most `timeout` seconds (None: the connection's timeout) for each answer.

        Raises:
            DeadlineError: it took longer. The rows are the error's ``rows``.
            ReplayError: rows were not stored; they are the error's ``rows``.
        """
        with self._changed:
            self._check()
            self._send_staged()
            self._wait(lambda: not self._in_flight, self._connection.timeout if timeout is None else timeout)

    def close(self) -> None:
        """Ends the writer at once: rows that were not flushed may be lost. Closing twice is allowed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._call is not None:
                self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self.close()

    # -- with the lock held -------------------------------------------------------------------------------------------------------------------

    def _opened(self, schema: Schema, rows: int) -> InsertCall:
        """The call, opened for blocks of the first rows that come, and its two threads started."""
        if self._call is None:
            self._call = open_inserts(self._connection, self._table, self._sharing, schema, rows, most_rows=MAX_BATCH_SIZE)
            if self._call.slots:  # Beside those on their way, one block is being filled, and one may have to be cut short.
                self._max_in_flight = min(self._max_in_flight, max(1, self._call.slots - 2))
            start_reader(self._take_acknowledgements, self._call)
            threading.Thread(target=self._flush_in_time, name="tdreplay-writer", daemon=True).start()
        return self._call

    def _staged(self, schema: Schema, rows: int = 1) -> Staging:
        """The block that is being filled, with room for `rows` rows more: a new one where the old one has none."""
        if self._staging is not None and self._staging.room < rows:
            self._send_staged()
        if self._staging is None:
            portion = max(rows, self._flush_rows)
            room = max(min(portion, rows_per_block(schema)), min(portion * SHARED_PORTIONS, SMALL_BYTES // max(1, schema.row_bytes)))
            self._staging = Staging(self._opened(schema, portion), schema, room)
            self._oldest = time.monotonic()
            self._changed.notify_all()
        return self._staging

    def _stage(self, columns: Columns, rows: int) -> None:
        """Puts a small batch into the block that is being filled."""
        if self._schema is not None:
            staging = self._staged(self._schema, rows)
            staging.extend(columns, rows)
            self._end_portion(staging)

    def _end_portion(self, staging: Staging) -> None:
        """Sends the block that is being filled, unless it is worth while to wait for more."""
        staging.end_portion()
        if staging.full or len(self._in_flight) < BUSY or self._portions + staging.portions > self._max_in_flight:
            self._send_staged()

    def _send_staged(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None and staging.rows and self._call is not None:
            self._send(self._call, replace(staging.parcel(), portions=max(1, staging.portions)))

    def _send(self, call: InsertCall, parcel: Parcel) -> None:
        self._in_flight.append(parcel)  # First, so that it is handed back where there is no room for it in time.
        self._portions += parcel.portions
        self._wait(lambda: self._portions <= self._max_in_flight or len(self._in_flight) == 1, self._connection.timeout)
        call.send(parcel)

    def _wait(self, done: Callable[[], bool], timeout: float) -> None:
        """Waits until done(), at most `timeout` seconds for each acknowledgement."""
        while not done():
            before = self._acknowledged
            self._changed.wait_for(lambda: done() or self._error or self._closed or self._acknowledged != before, timeout)  # noqa: B023
            if not done() and self._acknowledged == before and not (self._error or self._closed):
                self._error = self._connection.late()
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            error.rows = self._not_stored()
            self.close()
            try:
                raise error
            finally:
                del error  # Its traceback holds this frame: together they would keep the shared memory mapped.
        if self._closed:
            raise ClosedError("the writer is closed")

    def _not_stored(self) -> TensorDict | None:
        staged = [self._staging.parcel()] if self._staging is not None and self._staging.rows else []
        parts = [parcel.rows() for parcel in (*self._in_flight, *staged)]
        return torch.cat(parts) if parts else None

    # -- the two threads ----------------------------------------------------------------------------------------------------------------------

    def _take_acknowledgements(self, call: InsertCall) -> None:
        try:
            for _ in call.answers.patiently():
                with self._changed:
                    parcel = self._in_flight.popleft()
                    call.release(parcel)
                    self._portions -= parcel.portions
                    self._acknowledged += 1
                    self._send_what_waits()
                    self._changed.notify_all()
        except ReplayError as error:
            with self._changed:
                if not self._closed:
                    self._error = error
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
                if left is not None and left <= 0 and self._portions < self._max_in_flight:
                    self._send_staged()
                else:
                    self._changed.wait(None if left is None else max(left, 0.001))
