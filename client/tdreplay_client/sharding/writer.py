"""The writer over shards: its rows stay on one shard, and move to another one when that is lost."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.digests import digest_of
from tdreplay.errors import CancelledError, ClosedError, ReplayError, note_of_closing
from tdreplay.limits import BLOCK_BYTES, SHARED_BLOCK_BYTES, check_seconds
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.schema import Columns
from tdreplay_client.sharding.inserts import ShardedInserts
from tdreplay_client.sharding.row_pieces import bytes_of, rows_between
from tdreplay_client.sharding.shard_writer import WriterSettings
from tdreplay_client.sharding.writer_shards import WriterShards
from tdreplay_client.sharding.writer_watch import WriterWatch
from tdreplay_client.writing.leaving_writer import LeavingWriter
from tdreplay_client.writing.writer import Marks

__all__ = ["ShardedWriter"]

log = logging.getLogger("tdreplay")
ONE_STEP_BYTES = min(BLOCK_BYTES, SHARED_BLOCK_BYTES)
"""Batches of so many bytes are given to a shard as a whole. They are all taken, or none of their rows is."""


class _Taken(NamedTuple):
    """The mark behind a part of a large batch.

    Attributes:
        batch: What no other batch has.
        rows: How many of its rows were taken.
    """

    batch: object
    rows: int


class ShardedWriter(OfOneProcess):
    """Appends rows without waiting for each, as `Writer` does, to one shard, which is chosen when the writer is opened.

    When that shard is lost, the writer goes on with another one after about a second, also where its user does not call it meanwhile. Rows that were
    never sent move there. Those that were sent and not acknowledged may be stored: they are sent to no other shard, but again to theirs when it is
    back, and are stored once. `flush` and `close` wait for it, as long as the buffer's `timeout`; then their error has the rows. Where the shard
    comes back without its data, they go elsewhere.

    What is said of `Writer` of errors, interrupts, threads and writers that nobody closes holds here, too. What an error hands back can be given to
    `add_batch` of the same buffer, or to `extend` of another of its writers: each row goes to the shard that may have it.

    Args:
        inserts: The inserts of the buffer, which choose shards and check rows.
        watch: What moves rows while no call is at work.
        settings: When rows are sent.
        key: All writers of a key go to the same shard, as long as that is there; '': this one goes to any.
        for_episodes: Whether rows are steps of episodes. These do not leave their shard in the middle of an episode: they wait for it.
    """

    _instead = "it belongs to connections of this process. Give the other process the buffer, and open a writer there"

    def __init__(self, inserts: ShardedInserts, watch: WriterWatch, settings: WriterSettings, *, key: str = "", for_episodes: bool = False) -> None:
        self._inserts = inserts
        self._shards = WriterShards(inserts, watch, settings, key, for_episodes=for_episodes)
        self._turn = threading.RLock()
        self._cut: Given | None = None  # What an interrupted `extend` left.
        self._taken: bytes | None = None  # The digest of a large batch whose `extend` was interrupted when all of it was taken.
        self._fitted = False

    # -- rows -----------------------------------------------------------------------------------------------------------------------------------

    def append(self, row: Row, *, priority: float | None = None) -> None:
        """Adds one row, as `Writer.append` does.

        Raises:
            InvalidArgumentError, SchemaError, CodecError: as there. The row is not added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, this one among them.
        """
        self.append_given(given_row(row).prioritized(priority))

    def append_given(self, given: Given, marks: Marks | None = None) -> None:
        """As `Writer.append_given`."""
        self._check_open()
        self._fit(given)
        self._shards.give(LeavingWriter.append_given, given, marks)

    def extend(self, batch: Row, *, priorities: Any = None) -> None:
        """Adds n rows, as `Writer.extend` does.

        Raises:
            InvalidArgumentError, SchemaError, CodecError: as there. No row is added; the writer goes on.
            ReplayError: rows were not stored; they are the error's ``rows``, these among them.
        """
        self.extend_given(given_rows(batch).prioritized(priorities))

    def extend_given(self, given: Given, marks: Marks | None = None) -> None:
        """As `Writer.extend_given`."""
        self._check_open()
        if marks is None and self._inserts.routes.knows(given):  # They failed before: each goes where it may be stored.
            self._inserts.insert(given)
            return
        self._fit(given)
        if marks is not None or bytes_of(given) <= ONE_STEP_BYTES:
            self._shards.give(LeavingWriter.extend_given, given, marks)
        else:
            self._extend_in_steps(given)

    def _extend_in_steps(self, given: Given) -> None:
        """Adds a large batch a step at a time: where the shard is lost meanwhile, the rest goes to another one.

        After an interrupt the writer's mark says how many of its rows were taken.
        """
        columns = given.columns(self._inserts.schema.for_first(given), cast=self._inserts.schema.cast)
        whole = given._replace(values=columns)
        if self._taken is not None and self._was_taken(columns):
            return
        taken = _Taken(object(), 0)
        try:
            with self._turn:
                while taken.rows < whole.number:
                    stop = self._shards.now.writer.first_stop(whole, taken.rows)
                    following = _Taken(taken.batch, stop)
                    rest = rows_between(whole, stop, whole.number)
                    self._shards.give(LeavingWriter.extend_given, rows_between(whole, taken.rows, stop), (self.mark, following), (rest,))
                    taken = following
        except ReplayError:
            raise
        except BaseException:
            self._note_interrupt(whole, taken.batch)
            raise

    def _note_interrupt(self, whole: Given, batch: object) -> None:
        """Keeps the rows of a large batch that were not taken. Where all were, the batch is known when it is given again."""
        mark = self.mark
        if not isinstance(mark, _Taken) or mark.batch is not batch:
            return
        if mark.rows == whole.number:
            self._taken = digest_of(whole.values)
            return
        rest = rows_between(whole, mark.rows, whole.number)
        self._cut = rest
        self._cut = rest._replace(values={name: column.clone() for name, column in rest.values.items()})  # The rows are the user's to change.

    def _was_taken(self, columns: Columns) -> bool:
        """Whether this is the batch whose `extend` was interrupted when all of it was taken. It is asked once."""
        digest = digest_of(columns)
        known, self._taken = self._taken == digest, None
        return known

    def _fit(self, given: Given) -> None:
        """Checks the first rows against the schema of all shards. Those that come later are checked against these."""
        if not self._fitted:
            self._inserts.fit(given)
            self._fitted = True

    # -- the end --------------------------------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Sends what was appended, and waits until all of it is stored, on whatever shard; see `Writer.flush`.

        Raises:
            DeadlineError: it took longer. The rows are the error's ``rows``.
            ReplayError: rows were not stored; they are the error's ``rows``.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        self._check_open()
        self._shards.flush(seconds)

    def close(self, timeout: float | None = None) -> None:
        """Flushes, as `flush` does, and ends the writer. Closing twice is allowed; in a fork of its process nothing happens.

        Raises:
            ReplayError: rows were not stored; they are the error's ``rows``, and are counted in the log.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        if not self._shards.now.writer.is_here or (self._shards.is_over and not self._shards.has_error):
            return
        if any(inner.writer.is_interrupted_here for inner in self._shards.all):
            self._shards.end(lambda writer: writer.close(seconds))
            return
        try:
            self._check_open()
            self._shards.flush(seconds)
        except ReplayError as error:
            if isinstance(error, ClosedError) and error.rows is None:  # The buffer was closed, which stored all rows.
                self._shards.end(LeavingWriter.abandon)
                return
            if error.rows is not None:
                log.warning("a writer over shards, which was closed, did not store %d rows: %s", len(error.rows), error)
            raise
        self._shards.end(lambda writer: writer.close(seconds))

    def abandon(self) -> None:
        """Ends the writer at once. Rows that are not stored are dropped, and counted in the log. Closing it afterwards is allowed."""
        self._shards.end(LeavingWriter.abandon)

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

    # -- state ----------------------------------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        self._shards.now.writer.check_here()
        self._shards.settle_error()
        if self._shards.is_over:
            raise ClosedError("the writer is closed")
        if self._cut is not None:
            rest, self._cut = self._cut, None
            self._shards.fail(CancelledError(f"extend was interrupted: {rest.number} rows were not on their way yet"), rest)

    @property
    def shard(self) -> int:
        """The number of the shard to which the next rows go, as far as is known."""
        return self._shards.now.shard.number

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the shard's server: False until rows were added."""
        return self._shards.now.writer.shared

    @property
    def mark(self) -> Any:
        """As `Writer.mark`."""
        return self._shards.now.writer.mark

    @mark.setter
    def mark(self, mark: Any) -> None:
        self._shards.now.writer.mark = mark

    @property
    def is_open(self) -> bool:
        """Whether it takes rows."""
        return not self._shards.is_over and self._shards.now.writer.is_here

    @property
    def takes_at_once(self) -> bool:
        """As `Writer.takes_at_once`."""
        return self.is_open and self._shards.is_ready and self._shards.now.writer.takes_at_once

    def columns(self, given: Given) -> Columns:
        """As `Writer.columns`."""
        self._check_open()
        self._fit(given)
        return self._shards.now.writer.columns(given)
