"""The writer over shards: its rows stay on one shard, and move to another one when that is lost."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.episode_numbers import EpisodePlace, EpisodePlaces
from tdreplay.errors import CancelledError, ClosedError, ReplayError, ServerUnavailableError, TableNotFoundError, note_of_closing
from tdreplay.limits import SHARED_BLOCK_BYTES, check_seconds
from tdreplay.rows import Given, Row, given_row, given_rows
from tdreplay.schema import Columns
from tdreplay_client.sharding.inserts import ShardedInserts
from tdreplay_client.sharding.routes import parts_in_turn
from tdreplay_client.sharding.row_pieces import bytes_of, joined_rows, rows_between, tensordict_of, with_priorities
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_writer import Patience, Seat, ShardWriter, WriterSettings, never
from tdreplay_client.transport.refusals import stored_nothing
from tdreplay_client.writing.leaving_writer import LeavingWriter
from tdreplay_client.writing.writer import Marks

__all__ = ["ShardedWriter"]

log = logging.getLogger("tdreplay")
STAY_SECONDS = 0.5
"""How long a writer that found no other shard waits for its own before it looks again."""


LEAST_SECONDS = 0.001
"""What is waited for at least: a timeout is above 0."""


class ShardedWriter(OfOneProcess):
    """Appends rows without waiting for each, as `Writer` does, to one shard, which is chosen when the writer is opened.

    When that shard is lost, the writer goes on with another one after about a second. Rows that were never sent move there. Those that were sent and
    not acknowledged may be stored: they are sent to no other shard, but again to theirs when it is back, and are stored once. `flush` and `close`
    wait for it, as long as the buffer's `timeout`; then their error has the rows. Where the shard comes back without its data, they go elsewhere.

    What is said of `Writer` of errors, interrupts, threads and writers that nobody closes holds here, too. What an error hands back can be given to
    `add_batch` of the same buffer, or to `extend` of another of its writers: each row goes to the shard that may have it.

    Args:
        inserts: The inserts of the buffer, which choose shards and check rows.
        settings: When rows are sent.
        for_episodes: Whether rows are steps of episodes. These do not leave their shard in the middle of an episode: they wait for it.
    """

    _instead = "it belongs to connections of this process. Give the other process the buffer, and open a writer there"

    def __init__(self, inserts: ShardedInserts, settings: WriterSettings, *, for_episodes: bool = False) -> None:
        self._inserts, self._settings, self._for_episodes = inserts, settings, for_episodes
        self._seat = Seat(inserts.choice)
        weakref.finalize(self, self._seat.leave).atexit = False
        self._moving = threading.Lock()
        self._left: tuple[ShardWriter, ...] = ()
        self._carried: tuple[Given, ...] = ()  # Rows that left a shard, and are on no other one so far.
        self._cut: Given | None = None  # What an interrupted `extend` left.
        self._fitted = self._over = False
        self._inner = self._opened(())

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
        self._give(LeavingWriter.append_given, given, marks)

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
        if marks is not None or bytes_of(given) <= SHARED_BLOCK_BYTES:
            self._give(LeavingWriter.extend_given, given, marks)
        else:
            self._extend_in_parts(given)

    def _extend_in_parts(self, given: Given) -> None:
        """Adds a large batch a part at a time: where the shard is lost meanwhile, the rest goes to another one."""
        columns = given.columns(self._inserts.schema.for_first(given), cast=self._inserts.schema.cast)
        whole = given._replace(values=columns)
        step = max(1, given.number * SHARED_BLOCK_BYTES // max(1, bytes_of(whole)))
        start = 0
        try:
            for start in range(0, given.number, step):
                rest = rows_between(whole, start + step, given.number)
                self._give(LeavingWriter.extend_given, rows_between(whole, start, start + step), None, rest)
        except ReplayError:
            raise
        except BaseException:
            if start:
                self._cut = rows_between(whole, start + step, given.number)
            raise

    def _fit(self, given: Given) -> None:
        """Checks the first rows against the schema of all shards. Those that come later are checked against these."""
        if not self._fitted:
            self._inserts.fit(given)
            self._fitted = True

    def _give(self, give: Callable[[LeavingWriter, Given, Marks | None], None], given: Given, marks: Marks | None, rest: Given | None = None) -> None:
        """Gives rows to the shard of this writer, or to the next one where that is lost."""
        while True:
            inner = self._ready(marks)
            try:
                give(inner.writer, given, marks)
            except ReplayError as error:
                if isinstance(error, ServerUnavailableError) and inner.writer.is_open and inner.writer.is_untouched:
                    continue  # The call was never opened: either another shard takes the rows, or this one is waited for, at most for `timeout`.
                if inner.writer.is_open:
                    raise
                self._give_up(error, inner, rest)
                if marks is not None:
                    self.mark = marks[1]
            return

    # -- shards ---------------------------------------------------------------------------------------------------------------------------------

    def _opened(self, avoided: Sequence[Shard]) -> ShardWriter:
        shard = self._seat.take(avoided)
        patience = Patience(shard, self._inserts.is_removed)
        gives_up = never if self._for_episodes else patience.is_over
        return ShardWriter(shard, shard.writes.leaving_writer(self._inserts.schema, gives_up, *self._settings), patience)

    def _ready(self, marks: Marks | None = None) -> ShardWriter:
        """The writer of the shard for the next rows: another one's where that of the last ones is lost, and may be left."""
        inner = self._inner
        if self._carried or (inner.is_lost and self._may_leave(inner, marks)):
            try:
                inner.writer.ask(lambda: self._move(inner))
            except ReplayError as error:
                raise self._failed(error, self._inner) from None
        return self._inner

    def _may_leave(self, inner: ShardWriter, marks: Marks | None) -> bool:
        return not self._for_episodes or inner.writer.is_untouched or (marks is not None and _begins(marks[0]))

    def _move(self, inner: ShardWriter) -> None:
        """Goes on with another shard, where there is one. It runs in a thread of its own, which no interrupt reaches."""
        with self._moving:
            if self._inner is inner and inner.is_lost:
                self._leave(inner)
            self._deliver()

    def _leave(self, inner: ShardWriter) -> None:
        """Opens a writer of another shard. What the one before never sent goes there."""
        if inner.writer.away_seconds > LOSS_SECONDS:
            inner.shard.lose(ServerUnavailableError(f"server {inner.shard.place.address} does not take what a writer sends"))
        try:
            following = self._opened([inner.shard])
        except ServerUnavailableError:
            inner.patience.stay(STAY_SECONDS)
            return
        self._follow(inner, following)
        if not self._for_episodes:
            self._carried += tuple(inner.writer.withdraw())
        if inner.writer.is_untouched:
            inner.writer.abandon()
        else:
            inner.patience.stay(math.inf)
            self._left = (*self._left, inner)

    def _follow(self, inner: ShardWriter, following: ShardWriter) -> None:
        log.warning("a writer of shard %d goes on with shard %d", inner.shard.number, following.shard.number)
        following.writer.mark = inner.writer.mark
        self._inner = following

    def _deliver(self) -> None:
        """Gives on the rows that left a shard."""
        while self._carried:
            try:
                self._inner.writer.extend_given(self._carried[0])
            except ServerUnavailableError as error:
                if error.rows is None and self._inner.writer.is_open:
                    return  # They wait for another shard, or for this one.
                raise
            self._carried = self._carried[1:]

    def _give_up(self, error: ReplayError, inner: ShardWriter, rest: Given | None = None) -> None:
        """What becomes of the rows of a shard whose writer is at its end.

        Where the shard came back without its data, what it did not acknowledge is stored nowhere: it goes to another one, if there is one.
        """
        if error.rows is None or not isinstance(error, TableNotFoundError) or not self._inserts.choice.has_table_elsewhere():
            raise self._failed(error, inner, rest) from None
        rows = tuple(with_priorities(error.rows, self._inserts.schema.for_first(given_rows(error.rows))))

        def move() -> None:
            with self._moving:
                if self._inner is inner:
                    self._follow(inner, self._opened([inner.shard]))
                self._left = tuple(left for left in self._left if left is not inner)
                self._carried += rows
                self._deliver()

        try:
            inner.writer.ask(move)
        except ReplayError as failure:
            raise self._failed(failure if inner is not self._inner else error, inner, rest) from None

    # -- the end --------------------------------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """Sends what was appended, and waits until all of it is stored, on whatever shard; see `Writer.flush`.

        Raises:
            DeadlineError: it took longer. The rows are the error's ``rows``.
            ReplayError: rows were not stored; they are the error's ``rows``.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        self._check_open()
        self._settle(seconds)

    def _settle(self, seconds: float | None) -> None:
        """Waits until all is stored."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self._is_settled(until):
            pass

    def _is_settled(self, until: float | None) -> bool:
        """Whether all is stored. Where it is not, a shard was left, or came back without its data, and there is more to wait for."""
        inner = self._ready()
        try:
            if not inner.writer.flush_unless_lost(_left(until)):
                return False
            self._inserts.note_stored(inner.shard)
            while self._left:
                inner = self._left[0]
                inner.writer.flush(_left(until))
                inner.writer.abandon()  # Nothing is left in it.
                self._inserts.note_stored(inner.shard)
                self._left = self._left[1:]
        except ReplayError as error:
            if inner.writer.is_open:
                raise
            self._give_up(error, inner)
            return False
        return not self._carried

    def close(self, timeout: float | None = None) -> None:
        """Flushes, as `flush` does, and ends the writer. Closing twice is allowed.

        Raises:
            ReplayError: rows were not stored; they are the error's ``rows``, and are counted in the log.
        """
        seconds = None if timeout is None else check_seconds(timeout, "timeout")
        if self._over or not self._inner.writer.is_here:
            return
        if any(inner.writer.is_interrupted_here for inner in self._all):
            self._end(lambda writer: writer.close(seconds))
            return
        try:
            self._check_open()
            self._settle(seconds)
        except ReplayError as error:
            if error.rows is not None:
                log.warning("a writer over shards, which was closed, did not store %d rows: %s", len(error.rows), error)
            raise
        self._end(lambda writer: writer.close(seconds))

    def abandon(self) -> None:
        """Ends the writer at once. Rows that are not stored are dropped, and counted in the log. Closing it afterwards is allowed."""
        self._end(LeavingWriter.abandon)

    def _end(self, end: Callable[[LeavingWriter], None]) -> None:
        self._over = True
        for inner in self._all:
            end(inner.writer)
        self._seat.leave()

    def _failed(self, error: ReplayError, inner: ShardWriter | None, rest: Given | None = None) -> ReplayError:
        """The error, with all rows that are not acknowledged: those of this shard, then those of others, and the `rest` of a batch."""
        pieces = [] if error.rows is None or inner is None else [(inner.shard.number, error.rows)]
        for other in self._all:
            if other is not inner:
                pieces += _unstored(other)
        unsent = (*self._carried, *(() if rest is None else (rest,)))
        pieces += [(self._inner.shard.number, tensordict_of(given)) for given in unsent if given.number]
        self._carried = ()
        self._end(LeavingWriter.abandon)
        if stored_nothing(error):
            self._inserts.schema.forget()  # Its rows may be those that promised the schema.
        if pieces:
            error.rows = joined_rows([rows for _, rows in pieces])
            if len(pieces) > 1 or not stored_nothing(error):
                parts = parts_in_turn([number for number, _ in pieces], [len(rows) for _, rows in pieces])
                self._inserts.routes.note(given_rows(error.rows), parts)
        return error

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

    @property
    def _all(self) -> tuple[ShardWriter, ...]:
        return (*self._left, self._inner)

    def _check_open(self) -> None:
        self._inner.writer.check_here()
        if self._over:
            raise ClosedError("the writer is closed")
        if self._cut is not None:
            rest, self._cut = self._cut, None
            raise self._failed(CancelledError(f"extend was interrupted: {rest.number} rows were not on their way yet"), None, rest)

    @property
    def shard(self) -> int:
        """The number of the shard to which the next rows go, as far as is known."""
        return self._inner.shard.number

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the shard's server: False until rows were added."""
        return self._inner.writer.shared

    @property
    def mark(self) -> Any:
        """As `Writer.mark`."""
        return self._inner.writer.mark

    @mark.setter
    def mark(self, mark: Any) -> None:
        self._inner.writer.mark = mark

    @property
    def is_open(self) -> bool:
        """Whether it takes rows."""
        return not self._over and self._inner.writer.is_here

    @property
    def takes_at_once(self) -> bool:
        """As `Writer.takes_at_once`."""
        return self.is_open and not self._carried and not self._inner.is_lost and self._inner.writer.takes_at_once

    def columns(self, given: Given) -> Columns:
        """As `Writer.columns`."""
        self._check_open()
        self._fit(given)
        return self._inner.writer.columns(given)


def _left(until: float | None) -> float | None:
    return None if until is None else max(LEAST_SECONDS, until - time.monotonic())


def _begins(place: Any) -> bool:
    """Whether no episode runs at this place."""
    if isinstance(place, EpisodePlaces):
        return place.owed is None and not place.steps.any()
    return isinstance(place, EpisodePlace) and place.owed is None and place.step == 0


def _unstored(inner: ShardWriter) -> list[tuple[int, TensorDict]]:
    """What the writer of a shard has not stored: it is waited for where the shard is there."""
    try:
        inner.writer.flush(LEAST_SECONDS if inner.writer.away_seconds else LOSS_SECONDS)
    except ReplayError as error:
        return [] if error.rows is None else [(inner.shard.number, error.rows)]
    return []
