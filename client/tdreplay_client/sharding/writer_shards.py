"""The shards of one writer: the one that gets its rows, and those that it left."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tensordict import TensorDict

from tdreplay.episode_numbers import EpisodePlace, EpisodePlaces
from tdreplay.errors import ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay.rows import Given, given_rows
from tdreplay_client.sharding.inserts import ShardedInserts
from tdreplay_client.sharding.routes import parts_in_turn
from tdreplay_client.sharding.row_pieces import joined_rows, tensordict_of, with_priorities
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_writer import Patience, Seat, ShardWriter, WriterSettings
from tdreplay_client.sharding.writer_watch import WriterWatch
from tdreplay_client.transport.refusals import stored_nothing
from tdreplay_client.writing.leaving_writer import LeavingWriter
from tdreplay_client.writing.writer import Marks

__all__ = ["Give", "WriterShards"]

log = logging.getLogger("tdreplay")
Give = Callable[[LeavingWriter, Given, "Marks | None"], None]
STAY_SECONDS = 0.5
"""How long a writer that found no other shard waits for its own before it looks again."""
LEAST_SECONDS = 0.001
"""What is waited for at least: a timeout is above 0."""


class WriterShards:
    """The shards of one writer. Its rows stay on one, and what was never sent moves to another when that is lost.

    Where no call of the writer is at work, a thread of the buffer moves them: see `tend`. A call, or a thread, that moves rows does it in a thread of
    its own, which no interrupt reaches.

    Attributes:
        now: The writer of the shard for the next rows.
        is_over: Whether it takes no more rows.

    Args:
        inserts: The inserts of the buffer, which choose shards and check rows.
        watch: What moves rows while no call of the writer is at work.
        settings: When rows are sent.
        key: As in `Seat`.
        for_episodes: Whether rows are steps of episodes. These do not leave their shard in the middle of an episode: they wait for it.
    """

    def __init__(self, inserts: ShardedInserts, watch: WriterWatch, settings: WriterSettings, key: str, *, for_episodes: bool) -> None:
        self._inserts, self._watch, self._settings, self._for_episodes = inserts, watch, settings, for_episodes
        self._seat = Seat(inserts.choice, key)
        weakref.finalize(self, self._seat.leave).atexit = False
        self._moving, self._still = threading.Lock(), threading.Event()
        self._still.set()  # No thread of the buffer moves rows.
        self._inside: dict[int, ShardWriter | None] = {}  # By thread: what its call gives rows to, also where it was interrupted.
        self._left: tuple[ShardWriter, ...] = ()
        self._carried: tuple[Given, ...] = ()  # Rows that left a shard, and are on no other one so far.
        self._caught: tuple[ReplayError, ShardWriter | None, Sequence[Given]] | None = None
        self.is_over = False
        self.now = self._opened(())
        watch.add(self)

    @property
    def all(self) -> tuple[ShardWriter, ...]:
        """The writers of all shards that may have rows of it."""
        return (*self._left, self.now)

    @property
    def has_error(self) -> bool:
        """Whether the next call raises an error."""
        return self._caught is not None

    @property
    def is_ready(self) -> bool:
        """Whether the next rows go to the shard at once."""
        return not self._carried and not self.now.is_lost

    def _opened(self, avoided: Sequence[Shard]) -> ShardWriter:
        shard = self._seat.take(avoided)
        patience = Patience(shard, self._inserts.is_removed)
        return ShardWriter(shard, shard.writes.leaving_writer(self._inserts.schema, patience.ends_waits, *self._settings), patience)

    # -- calls of the writer --------------------------------------------------------------------------------------------------------------------

    def give(self, give: Give, given: Given, marks: Marks | None, rest: Sequence[Given] = ()) -> None:
        """Gives rows to the shard, or to the next one where that is lost. `rest` are those of a batch that come after them.

        A call that was interrupted may have taken its rows. It is known to the writer of its shard: the next call of the thread goes there, too.
        Nothing is called behind `give`: an interrupt there would find rows that were taken and are forgotten.

        Raises:
            ReplayError: rows are not stored, those of all shards. They are the error's ``rows``.
        """
        thread = threading.get_ident()
        self._watch.wake()
        while True:
            inner = self._entered(thread, given, marks, rest)
            try:
                give(inner.writer, given, marks)
            except ReplayError as error:
                if isinstance(error, ServerUnavailableError) and inner.writer.is_open and inner.writer.is_untouched:
                    self._inside[thread] = None  # The call was never opened: another shard takes the rows, or this one is waited for.
                    continue
                if not inner.writer.is_open:
                    self._caught = (error, inner, rest)
                self._inside[thread] = None
                if self._caught is None:
                    raise
                self.settle_error()
                if marks is not None:
                    self.now.writer.mark = marks[1]
                return
            if self._for_episodes:
                inner.patience.is_bound = True
            self._inside[thread] = None
            return

    def _entered(self, thread: int, given: Given, marks: Marks | None, rest: Sequence[Given]) -> ShardWriter:
        """What the call of this thread gives its rows to. No other thread moves rows until the call is over."""
        inner = self._inside.get(thread)
        if inner is not None:
            return inner
        self._inside[thread] = self.now
        while not self._still.is_set():
            self._still.wait(LOSS_SECONDS)
        try:
            if self._caught is not None:
                self.settle_error()
            inner = self.now
            if self._left or self._carried or inner.is_lost:
                inner = self.ready(marks, (given, *rest))
        except ReplayError:
            self._inside[thread] = None
            raise
        self._inside[thread] = inner
        return inner

    def ready(self, marks: Marks | None = None, rest: Sequence[Given] = ()) -> ShardWriter:
        """The writer of the shard for the next rows: another one's where that of the last ones is lost, and may be left.

        Raises:
            ReplayError: it cannot be had. The error has the rows of all shards, and the `rest`; the writer is at its end.
        """
        for left in self._left:
            if left.writer.failure is not None:
                self._fail_by_flush(left, rest)
        inner = self.now
        if self._carried or (inner.is_lost and self._may_leave(inner, marks)):
            try:
                inner.writer.ask(self._move)
            except ReplayError as error:
                self._caught = (error, self.now, rest)
                self.settle_error()
        return self.now

    def _fail_by_flush(self, inner: ShardWriter, rest: Sequence[Given] = ()) -> None:
        """Settles what becomes of the rows of a shard whose writer failed."""
        try:
            inner.writer.flush(LEAST_SECONDS)
        except ReplayError as error:
            self._caught = (error, inner, rest)
            self.settle_error()

    def _may_leave(self, inner: ShardWriter, marks: Marks | None) -> bool:
        return not self._for_episodes or inner.writer.is_untouched or (marks is not None and _begins(marks[0]))

    def flush(self, seconds: float | None) -> None:
        """Waits until all is stored, on whatever shard.

        Raises:
            ReplayError: as `Writer.flush`, with the rows of all shards.
        """
        thread, until = threading.get_ident(), None if seconds is None else time.monotonic() + seconds
        try:
            self._inside[thread] = self.now
            while not self._is_settled(until):
                pass
        finally:
            self._inside[thread] = None

    def _is_settled(self, until: float | None) -> bool:
        """Whether all is stored. Where it is not, a shard was left, or came back without its data, and there is more to wait for."""
        self.settle_error()
        inner = self.ready()
        try:
            if not inner.writer.flush_unless_lost(_left(until)):
                return False
            self._inserts.note_stored(inner.shard)
            while self._left:
                inner = self._left[0]
                inner.writer.flush(_left(until))
                inner.writer.ask(partial(self._drop, inner))
        except ReplayError as error:
            if inner.writer.is_open:
                raise
            self._caught = (error, inner, ())
            self.settle_error()
            return False
        return not self._carried

    # -- moves: in threads that no interrupt reaches --------------------------------------------------------------------------------------------

    def tend(self) -> bool:
        """Moves rows of a shard that is lost, or came back empty, where no call of the writer does. Gives whether it holds any rows.

        It is called again and again, in a thread of the buffer.
        """
        try:
            self._still.clear()
            if not any(inner is not None for inner in tuple(self._inside.values())) and self._caught is None and not self.is_over:
                self._tend()
        except ReplayError as error:  # The next call finds it, too.
            log.debug("the rows of a writer do not move: %s", error)
        finally:
            self._still.set()
        return not self.is_over and (bool(self._carried) or any(inner.writer.rows_left for inner in self.all))

    def _tend(self) -> None:
        for inner in self._left:
            if not inner.writer.rows_left and inner.writer.is_open:
                self._drop(inner)
        for inner in self.all:
            if isinstance(inner.writer.failure, TableNotFoundError):
                self._fail_by_flush(inner)
        if self._carried or (self.now.is_lost and self._may_leave(self.now, None)):
            self._move()

    def _move(self) -> None:
        """Goes on with another shard, where there is one."""
        with self._moving:
            if self.now.is_lost:
                self._leave(self.now)
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
        if not self._for_episodes:
            self._carried += tuple(inner.writer.withdraw())
        inner.patience.stay(math.inf)
        self._left = (*self._left, inner)
        self._follow(inner, following)

    def _follow(self, inner: ShardWriter, following: ShardWriter) -> None:
        log.warning("a writer of shard %d goes on with shard %d", inner.shard.number, following.shard.number)
        following.writer.mark = inner.writer.mark
        self.now = following

    def _deliver(self) -> None:
        """Gives on the rows that left a shard."""
        while self._carried:
            try:
                self.now.writer.extend_given(self._carried[0])
            except ServerUnavailableError as error:
                if error.rows is None and self.now.writer.is_open:
                    return  # They wait for another shard, or for this one.
                raise self._undelivered(error) from None
            except ReplayError as error:
                raise self._undelivered(error) from None
            self._carried = self._carried[1:]

    def _undelivered(self, error: ReplayError) -> ReplayError:
        """The error. Rows that it has are not carried any more: they would be handed back twice."""
        if error.rows is not None:
            self._carried = self._carried[1:]
        return error

    def _drop(self, inner: ShardWriter) -> None:
        """Forgets a shard that was left, and has stored all that it got."""
        with self._moving:
            self._left = tuple(left for left in self._left if left is not inner)
        inner.writer.abandon()
        self._inserts.note_stored(inner.shard)

    # -- errors ---------------------------------------------------------------------------------------------------------------------------------

    def settle_error(self) -> None:
        """Settles what becomes of the rows of an error that ended the writer of a shard. After an interrupt the next call goes on here.

        Raises:
            ReplayError: they are not stored. The writer is at its end.
        """
        if self._caught is None:
            return
        self.now.writer.ask(self._deal)
        if self._caught is not None:
            error, _, _ = self._caught
            self._caught = None  # Nothing is called from here on: an interrupt before this leaves the error to the next call.
            raise error

    def _deal(self) -> None:
        """Moves the rows of the error that was caught, or makes it an error for the user. Doing it twice is allowed."""
        with self._moving:
            if self._caught is None or self.is_over:
                return
            error, inner, rest = self._caught
            try:
                if inner is not None and self._is_emptied(error):
                    self._take_over(error, inner, rest)
                    self._caught = None
                    return
            except ReplayError as failure:
                if error.rows is None:  # They are carried already.
                    error, inner, rest = failure, self.now, ()
            self._hand_back(error, inner, rest)
            self._caught = (error, None, ())

    def _is_emptied(self, error: ReplayError) -> bool:
        """Whether a shard came back without its data: what it did not acknowledge is stored nowhere."""
        return error.rows is not None and isinstance(error, TableNotFoundError) and self._inserts.choice.has_table_elsewhere()

    def _take_over(self, error: ReplayError, inner: ShardWriter, rest: Sequence[Given]) -> None:
        """Gives the rows of a shard that came back empty to another one."""
        following = self._opened([inner.shard]) if self.now is inner else None
        rows = tuple(with_priorities(error.rows, self._inserts.schema.for_first(given_rows(error.rows))))
        self._carried, error.rows = (*self._carried, *rows, *rest), None
        self._left = tuple(left for left in self._left if left is not inner)
        if following is not None:
            self._follow(inner, following)
        self._deliver()

    def _hand_back(self, error: ReplayError, inner: ShardWriter | None, rest: Sequence[Given]) -> None:
        """Ends the writer. Its error gets all rows that are not acknowledged: those of this shard, then those of others, and the `rest`."""
        pieces = [] if error.rows is None or inner is None else [(inner.shard.number, error.rows)]
        for other in self.all:
            if other is not inner or not pieces:
                pieces += _unstored(other)
        pieces += [(self.now.shard.number, self._copied(given)) for given in (*self._carried, *rest) if given.number]
        self._carried = ()
        self.end(LeavingWriter.abandon)
        if stored_nothing(error):
            self._inserts.schema.forget()  # Its rows may be those that promised the schema.
        if pieces:
            error.rows = joined_rows([rows for _, rows in pieces])
            if len(pieces) > 1 or not stored_nothing(error):
                parts = parts_in_turn([number for number, _ in pieces], [len(rows) for _, rows in pieces])
                self._inserts.routes.note(given_rows(error.rows), parts)

    def _copied(self, given: Given) -> TensorDict:
        schema = self._inserts.schema
        return tensordict_of(given._replace(values=given.columns(schema.for_first(given), cast=schema.cast), rows=given.number))

    def fail(self, error: ReplayError, rest: Given) -> None:
        """Ends the writer with an error, whose rows are all that are not acknowledged, and then the `rest` of a batch.

        Raises:
            ReplayError: it is that error.
        """
        self._caught = (error, None, (rest,))
        self.settle_error()

    def end(self, end: Callable[[LeavingWriter], None]) -> None:
        """Takes no more rows, and ends the writers of all shards."""
        self.is_over = True
        for inner in self.all:
            end(inner.writer)
        self._seat.leave()


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
