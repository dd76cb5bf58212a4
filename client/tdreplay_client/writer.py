"""Pipelined inserts: rows are coalesced into blocks, and blocks are on their way while more rows are appended."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType

import torch
from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.block import decode
from tdreplay.columns import from_rows, to_tensordict
from tdreplay.errors import ClosedError, ReplayError
from tdreplay.framing import split
from tdreplay.schema import Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.batches import block_ranges, encode
from tdreplay_client.channel import Connection
from tdreplay_client.staging import Row, Staging, schema_of, values_of
from tdreplay_client.stream import end_call

__all__ = ["Writer"]


class Writer:
    """Appends rows to a table without waiting for each. One thread appends; the rows of one writer are stored in the order in which they came.

    Rows are stored when `flush` returns (or the ``with`` block ends without an error). What goes wrong on the way is raised by the next call; the
    error's ``rows`` are those that were not acknowledged (a TensorDict; after a lost connection, some of them may be stored). The writer is then at
    its end.

    Args:
        connection: to the server.
        table: the table's name.
        flush_rows: rows are sent when there are so many, or a block of them (3 MiB).
        flush_seconds: or when the oldest of them waited for so long.
        max_in_flight: blocks that may wait for their acknowledgement; `append` blocks beyond that.
    """

    def __init__(self, connection: Connection, table: str, flush_rows: int, flush_seconds: float, max_in_flight: int) -> None:
        self._connection, self._head = connection, pb.AddBatchRequest(table=table)
        self._flush_rows, self._flush_seconds, self._max_in_flight = flush_rows, flush_seconds, max_in_flight
        self._changed = threading.Condition()
        self._schema: Schema | None = None
        self._staging: Staging | None = None
        self._oldest = 0.0
        self._in_flight: deque[bytes] = deque()
        self._acknowledged = 0
        self._error: ReplayError | None = None
        self._closed = False
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = connection.stream("AddBatch", iter(self._requests.get, None))
        reader, flusher = (
            threading.Thread(target=work, name="tdreplay-writer", daemon=True) for work in (self._take_acknowledgements, self._flush_in_time)
        )
        reader.start()
        flusher.start()
        weakref.finalize(self, end_call, self._requests, self._answers, reader)

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
            if self._staging is None:
                if self._schema is None:
                    self._schema = schema_of(values, row_shape)
                self._staging = Staging(self._head, self._schema, self._flush_rows)
                self._oldest = time.monotonic()
                self._changed.notify_all()
            self._staging.append(values)
            if self._staging.full:
                self._send_staged()

    def extend(self, batch: TensorDictBase) -> None:
        """Adds n rows: a TensorDict of batch size [n, ...]. They are sent at once, after those that were appended. Blocks as `append` does.

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
            self._send_staged()
            for start, stop in block_ranges(schema, batch.batch_size[0]):
                try:
                    self._send(encode(self._head, schema, columns, start, stop))
                except ReplayError as error:
                    rest = {name: column[stop:].cpu() for name, column in columns.items()}
                    unsent = to_tensordict(rest, (batch.batch_size[0] - stop, *row_shape), torch.device("cpu"))
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
        end_call(self._requests, self._answers, None)  # The reader may be waiting for the lock that is held here.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self.close()

    # -- with the lock held -------------------------------------------------------------------------------------------------------------------

    def _send_staged(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None and staging.rows:
            self._send(staging.message())

    def _send(self, message: bytes) -> None:
        self._in_flight.append(message)  # First, so that it is handed back where there is no room for it in time.
        self._wait(lambda: len(self._in_flight) <= self._max_in_flight, self._connection.timeout)
        self._requests.put(message)

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
            raise error
        if self._closed:
            raise ClosedError("the writer is closed")

    def _not_stored(self) -> TensorDict | None:
        staged = [self._staging.message()] if self._staging is not None and self._staging.rows else []
        parts = [_rows_of(message) for message in (*self._in_flight, *staged)]
        return torch.cat(parts) if parts else None

    # -- the two threads ----------------------------------------------------------------------------------------------------------------------

    def _take_acknowledgements(self) -> None:
        try:
            for _ in self._answers.patiently():
                with self._changed:
                    self._in_flight.popleft()
                    self._acknowledged += 1
                    self._changed.notify_all()
        except ReplayError as error:
            with self._changed:
                if not self._closed:
                    self._error = error
                self._changed.notify_all()

    def _flush_in_time(self) -> None:
        with self._changed:
            while not (self._closed or self._error):
                left = None if self._staging is None else self._oldest + self._flush_seconds - time.monotonic()
                if left is not None and left <= 0 and len(self._in_flight) < self._max_in_flight:
                    self._send_staged()
                else:
                    self._changed.wait(None if left is None else max(left, 0.001))


def _rows_of(message: bytes) -> TensorDict:
    _, memory = split(message, pb.AddBatchRequest)
    block = decode(memory)
    return to_tensordict(block.columns, block.batch_shape, torch.device("cpu"))
