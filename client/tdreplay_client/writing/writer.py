"""Pipelined inserts: rows are coalesced into blocks, and blocks are on their way while more rows are appended."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import FailedPreconditionError, ReplayError, note_of_closing
from tdreplay.limits import check_seconds
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.schema import Columns, Schema
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.writing.guarded_engine import is_nested
from tdreplay_client.writing.insert_engine import SMALL_BYTES, FlushPolicy
from tdreplay_client.writing.insert_state import Batch, Part
from tdreplay_client.writing.known_schema import WriterSchema
from tdreplay_client.writing.pipeline import Pipeline
from tdreplay_client.writing.staging import Staging
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts

__all__ = ["Writer"]

log = logging.getLogger("tdreplay")
SMALL_ROW_BYTES = 64 << 10
"""Copying a row of so many bytes takes about as long as the rest of `append`."""


_InterruptedCall: TypeAlias = "tuple[Staging, int, int, int]"
"""Rows that were taken, although the call that gave them was interrupted: they may be given again, and must be taken once.

The block in which they lie, the place of the first of them in it, their number, and the thread that gave them.
"""

_Place: TypeAlias = Callable[[Staging, Any, int], None]
Marks: TypeAlias = "tuple[Any, Any]"
"""What a writer's mark is before rows are taken, and what it is from then on."""


class Writer(OfOneProcess):
    """Appends rows to a table without waiting for each. The rows that one thread gives a writer are stored in the order in which they came.

    Rows are stored, each once, when `flush` or `close` returns, or when the ``with`` block ends, with an error too. When the connection is lost, the
    writer opens another one by itself, and sends the rows again that were not acknowledged. Meanwhile `append` and `extend` go on while there is
    room.

    What the server refuses, and what does not succeed within the connection's timeout, is raised by the next call. The writer is then at its end. The
    error's ``rows`` (a TensorDict) are those that were not acknowledged; after a lost connection or a timeout, some of them may be stored. Give all
    of them to `add_batch` of the same buffer, or to `extend` of another of its writers, and they are stored once. Where rows were given with
    priorities, the error's rows have them in the field ``priority``, NaN where none was given. Rows that are given again as they are keep them.

    A writer that nothing refers to any more sends what it has, and ends by itself. So does one that is open when its buffer is closed or the
    interpreter exits. This takes at most the connection's timeout, at the exit a second. Rows that are dropped all the same, by `abandon` too, are
    counted in one line of the log (logger ``tdreplay``, a warning).

    An interrupted call (Ctrl-C) leaves the writer whole: its rows were taken, or they were not. Rows that the next call gives again are stored once.
    An interrupted `extend` of several blocks may leave a part of its batch behind. Then the next call raises a `CancelledError`, whose ``rows`` are
    all that were not acknowledged. A signal handler that interrupts a call may `close` the writer, which does not wait then. It must not write.

    Rows are counted in units. `flush_rows` appended rows are a unit, and so is a batch of `extend`, or each block (2 MiB) of a larger one. A unit is
    sent at once while the server has little to do. While it is busy, small units wait a moment and share a block.

    Args:
        connection: the connection to the server.
        table: the table's name.
        sharing: whether large blocks go through memory that is shared with the server.
        unacknowledged: the failed inserts of the buffer.
        known_schema: what the buffer knows of the table's rows.
        flush_rows: the number of appended rows that are sent together. They are sent earlier where they fill a block.
        flush_seconds: the longest time in seconds that an appended row waits for others.
        max_in_flight: the most units that wait for their acknowledgement, at most 32 (half of what the server remembers); `append` waits while there
            are more.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a writer there"

    def __init__(
        self,
        connection: Connection,
        table: str,
        sharing: Sharing,
        unacknowledged: UnacknowledgedInserts,
        known_schema: WriterSchema,
        flush_rows: int,
        flush_seconds: float,
        max_in_flight: int,
    ) -> None:
        connection.check_open()
        self._owner, self._unacknowledged, self._known_schema, self._flush_rows = connection.owner, unacknowledged, known_schema, flush_rows
        policy = FlushPolicy(flush_rows, flush_seconds, max_in_flight, known_schema.cast, unacknowledged.block_rows)
        self._block_rows = unacknowledged.block_rows
        self._core = Pipeline(connection, table, sharing, unacknowledged, policy)

        self._schema: Schema | None = None
        self._interrupted: _InterruptedCall | None = None
        self._turn = threading.RLock()
        self._extending = 0  # The thread that adds a large batch now.
        self._opening = 0  # The thread that opened the call last: a signal handler that interrupts it must not open another one.
        weakref.finalize(self, self._core.drain).atexit = False

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the server: False until rows were added."""
        return self._core.call is not None and self._core.call.segments > 0

    def append(self, row: Row, *, priority: float | None = None) -> None:
        """Adds one row: a TensorDict without a row dimension, or a dict, as `add` takes them. Its memory is copied.

        Blocks while `max_in_flight` blocks wait for their acknowledgement, at most the connection's timeout. `priority` is as in `add`.

        Raises:
            InvalidArgumentError: the priority breaks its rule. The row is not added; the writer goes on.
            SchemaError, CodecError: the row does not fit the writer's first one, or cannot travel. It is not added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, this one among them.
        """
        self._owner.check()
        self.append_given(given_row(row).prioritized(priority))

    def append_given(self, given: Given, marks: Marks | None = None) -> None:
        """Adds one row as `append` does. With `marks`, `mark` goes from the first to the second in the moment in which the row is taken.

        Raises:
            FailedPreconditionError: `mark` is not the first. The row is not added.
            InvalidArgumentError, SchemaError, CodecError, ReplayError: as `append`.
        """
        try:
            self._core.has_priorities |= given.priorities is not None
            if self._schema is None:
                self._open_for_row(given)
            self._take(Staging.place, given, 1, self._flush_rows, has_priorities=given.priorities is not None, marks=marks)
        except ReplayError as error:
            self._core.forget(error)
            raise

    def extend(self, batch: Row, *, priorities: Any = None) -> None:
        """Adds n rows: a TensorDict of batch size [n, ...], or a dict, as `add_batch` takes them. Its memory is copied. Blocks as `append` does.

        `priorities` are as in `add_batch`.

        Raises:
            InvalidArgumentError: a priority breaks its rule. No row is added; the writer goes on.
            SchemaError, CodecError: the rows do not fit the writer's first one, or cannot travel. None is added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, these among them.
        """
        self._owner.check()
        self.extend_given(given_rows(batch).prioritized(priorities))

    def extend_given(self, given: Given, marks: Marks | None = None) -> None:
        """Adds n rows as `extend` does. With `marks`, `mark` goes from the first to the second when the last row is taken.

        Raises:
            FailedPreconditionError: `mark` is not the first. No row is added.
            InvalidArgumentError, SchemaError, CodecError, ReplayError: as `extend`.
        """
        self._core.settle()
        self._core.check_open()
        try:
            self._core.has_priorities |= given.priorities is not None
            batch = self._batch_of(given, marks)
            self._core.has_priorities |= batch.priorities is not None
            if batch.schema.row_bytes * batch.rows * 2 <= SMALL_BYTES and batch.rows <= self._block_rows and not batch.resumed:
                self._take(Staging.place_batch, batch.sent_columns, batch.rows, 1, has_priorities=batch.priorities is not None, marks=marks)
            else:
                self._extend_in_blocks(batch)
        except ReplayError as error:
            self._core.forget(error)
            raise

    @property
    def mark(self) -> Any:
        """What the rows left that were taken last: see `append_given`. After an interrupted call it says whether its rows were taken."""
        if self._core.broken_off is not None:
            self._core.settle()
        return self._core.mark

    @mark.setter
    def mark(self, mark: Any) -> None:
        self._core.mark = mark

    @property
    def is_open(self) -> bool:
        """Whether it takes rows."""
        return self._owner.is_here and not self._core.is_over

    @property
    def takes_at_once(self) -> bool:
        """Whether `append` takes its next row without waiting for the server: rows are small, there was one already, and there is room."""
        schema, core = self._schema, self._core
        small = schema is not None and schema.row_bytes <= SMALL_ROW_BYTES
        return small and self.is_open and core.error is None and core.call is not None and core.engine.has_plenty_of_room

    def columns(self, given: Given) -> Columns:
        """Rows as they are stored, as columns. The first ones of a writer may ask the server for the table's schema.

        Raises:
            SchemaError, CodecError: they do not fit, or cannot travel.
            ReplayError: the server does not say its schema. The writer is at its end; the rows are the error's ``rows``.
        """
        self._owner.check()
        return given.columns(self._schema or self._first_schema(given), cast=self._known_schema.cast)

    def flush(self, timeout: float | None = None) -> None:
        """Sends what was appended, and waits until all of it is stored, at most `timeout` seconds (None: the connection's timeout) for each answer.

        Raises:
            DeadlineError: it took longer. The rows are the error's ``rows``.
            ReplayError: rows were not stored; they are the error's ``rows``.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        self._owner.check()
        self._refuse_reentry()
        self._core.check_open()
        try:
            self._core.flush(seconds)
        except ReplayError as error:
            self._core.forget(error)
            raise

    def close(self, timeout: float | None = None) -> None:
        """Flushes, as `flush` does, and ends the writer. Closing twice is allowed; in a fork of its process nothing happens.

        Raises:
            ReplayError: rows were not stored; they are the error's ``rows``, and are counted in the log.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        if not self._owner.is_here or self._core.is_over:
            return
        if self._core.is_interrupted_here():
            self._core.drain(seconds)
        else:
            self._close(seconds)

    def _close(self, seconds: float | None) -> None:
        try:
            self._core.close(seconds)
        except ReplayError as error:
            if error.rows is not None:
                log.warning("%s, which was closed, did not store %d rows: %s", self._core.name, len(error.rows), error)
            self._core.forget(error)
            raise

    def abandon(self) -> None:
        """Ends the writer at once. Rows that are not stored are dropped, and counted in the log. Closing it afterwards is allowed."""
        if not self._owner.is_here:
            return
        if self._core.is_interrupted_here():
            self._core.drain(0.0)
        else:
            self._core.end("it was abandoned")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Closes the writer. Where the block ended with an error, an error of the closing is added to that as a note."""
        try:
            self.close()
        except ReplayError as failure:
            if error is None:
                raise
            note_of_closing(error, failure)

    # -- inside ---------------------------------------------------------------------------------------------------------------------------------

    def _open_for_row(self, row: Given) -> None:
        """Opens the call for a first row, and fixes the schema. Where no call can be opened, the error hands the row back."""
        self._refuse_reentry()
        self._core.check_open()
        self._opening = threading.get_ident()
        columns = row.columns(self._first_schema(row), cast=self._known_schema.cast)
        schema = row.schema(columns)
        self._core.open(schema, self._flush_rows)
        if self._core.call is None:
            self._core.check(_batch(row, columns, schema))
        self._fix(schema)

    def _first_schema(self, rows: Given) -> Schema | None:
        """The table's schema, where the first rows need it. Where the server does not say it, the error hands the rows back."""
        try:
            return self._core.ask(lambda: self._known_schema.for_first(rows))
        except ReplayError as error:
            columns = rows.columns(None, cast=False)
            self._core.fail(error)
            self._core.check(_batch(rows, columns, rows.schema(columns)))
            raise

    def _batch_of(self, given: Given, marks: Marks | None) -> Batch:
        """Rows as they go out. Where they went out before, and failed, they go out as they did then."""
        columns = given.columns(self._schema or self._first_schema(given), cast=self._known_schema.cast)
        schema, rows = given.schema(columns), given.number
        if marks is not None:
            self._open_for_batch(columns, schema, rows, given.priorities)
            return Batch(columns, schema, rows, priorities=given.priorities, block_rows=self._block_rows, marks=marks)
        columns, schema = self._unacknowledged.as_given(columns, schema, rows)
        self._open_for_batch(columns, schema, rows, given.priorities)
        return self._unacknowledged.claim(columns, schema, rows, given.priorities)

    def _open_for_batch(self, columns: Columns, schema: Schema, rows: int, priorities: npt.NDArray[np.float64] | None) -> None:
        """Opens the call for a first batch, and fixes the schema. Where the writer failed, the error hands the batch back."""
        self._refuse_reentry()
        if self._schema is not None:
            self._schema.check(schema)
        self._core.open(schema, rows)
        if self._core.error is not None:
            self._core.check_batch(Batch(columns, schema, rows, priorities=priorities))
        self._fix(schema)

    def _fix(self, schema: Schema) -> None:
        with self._core.lock:
            if self._schema is None:
                self._schema = schema
            self._schema.check(schema)

    def _refuse_reentry(self) -> None:
        opening = self._opening == threading.get_ident() and is_nested()
        if opening or self._extending == threading.get_ident() or self._core.is_interrupted_here():
            raise FailedPreconditionError("a signal handler must not write into a writer in the middle of one of its calls; it may close it")

    def _take(self, place: _Place, given: Any, rows: int, unit_rows: int, *, has_priorities: bool, marks: Marks | None) -> None:
        """Takes rows into the block that is being filled, and ends a unit there where it has `unit_rows`."""
        core, staging, at, taken, thread = self._core, None, 0, False, threading.get_ident()
        if core.inside:
            self._refuse_reentry()
        try:
            with core.lock:
                try:
                    core.inside = True
                    core.check_open()
                    core.check_marks(marks)
                    staging = core.staged(self._schema, rows, has_priorities=has_priorities)
                    place(staging, given, rows)
                    after = core.mark if marks is None else marks[1]
                    if marks is not None or self._interrupted is None or not self._is_in(staging, rows):
                        at = staging.rows
                        staging.rows, taken, core.mark = at + rows, True, after
                    core.check()
                    due = staging.full or staging.unit_rows >= unit_rows
                    if due:
                        core.end_unit()
                finally:
                    core.inside = False
            if due:
                core.await_room()
            self._interrupted = None
        except ReplayError:
            self._forget_schema()
            raise
        except BaseException:
            if taken and staging is not None:  # Calls nothing: where another interrupt came in a call, the rows would be taken twice.
                self._interrupted = (staging, at, rows, thread)
            raise

    def _forget_schema(self) -> None:
        """Forgets the schema where no row was taken: rows that were refused do not fix it."""
        with self._core.lock:
            if self._core.engine.is_untouched:
                self._core.engine.drop_staging()
                self._schema = None

    def _is_in(self, staging: Staging, rows: int) -> bool:
        """Whether the rows that were just placed were taken before, by an interrupted call that gave the same rows."""
        if self._interrupted is not None:
            before, at, number, thread = self._interrupted
            if (number, thread) == (rows, threading.get_ident()) and staging.has_placed(before, at, rows):
                return True
        self._interrupted = None
        return False

    def _extend_in_blocks(self, batch: Batch) -> None:
        """Adds a batch in blocks of its own: a large one, and one that went out before."""
        with self._turn:
            part: Part | None = None
            try:
                self._extending = threading.get_ident()
                self._core.begin(batch)
                while (following := self._core.next_part()) is not None:
                    part = following
                    self._core.add(batch, part)
                    self._core.await_room()
                if batch.marks is not None:
                    self._core.mark = batch.marks[1]
            except BaseException as error:
                self._core.broken_off = (batch, part, error)  # Before anything is called, where another interrupt may come.
                if isinstance(error, ReplayError) and error.rows is not None:
                    self._core.broken_off = None
                self._core.settle()
                raise
            finally:
                self._extending = 0


def _batch(rows: Given, columns: Columns, schema: Schema) -> TensorDict:
    return Batch(columns, schema, rows.number, priorities=rows.priorities).rest()[0]
