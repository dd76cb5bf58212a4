"""Threads that run the engine of a writer: blocks go over a call, acknowledgements come back, and another call takes the place of a lost one.

No thread refers to the writer. So a writer that nobody refers to any more is noticed, and its pipeline ends by itself.

The user's thread waits without the lock. `tdreplay_client.writing.guarded_engine` says how it may be interrupted.
"""

from __future__ import annotations

import atexit
import logging
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

from tdreplay.errors import ClosedError, InternalError, RateLimitedError, ReplayError, ServerUnavailableError
from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.schema import Schema
from tdreplay.system_fields import EPISODE_ID
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import FIRST_PAUSE, GRACE_SECONDS, RetryBudget
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.transport.threads import start_reader
from tdreplay_client.writing.guarded_engine import GuardedEngine
from tdreplay_client.writing.insert_calls import WAKE_UP, InsertCall, Requests, open_inserts
from tdreplay_client.writing.insert_engine import FlushPolicy, Sending
from tdreplay_client.writing.insert_messages import InsertMessage
from tdreplay_client.writing.unacknowledged import UnacknowledgedInserts

__all__ = ["Pipeline", "finish_all"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")
POLL_SECONDS = 0.5
LOOK_SECONDS = 0.1
"""How often a thread that waits looks whether the server is given up."""
EXIT_SECONDS = 1.0


class _First(NamedTuple):
    """What a call is opened for: blocks of that schema, of about that many rows."""

    schema: Schema
    rows: int


class Pipeline(GuardedEngine):
    """The rows of one writer, on their way to a table.

    Attributes:
        name: the name of the writer in messages.
        connection: the connection to the server.
        gives_up: whether waits end that have lasted so many seconds because the server is away; None: they do not end for that. See `is_lost`.

    Args:
        connection: the connection to the server.
        table: the table's name.
        sharing: whether large blocks go through memory that is shared with the server.
        unacknowledged: the failed inserts of the buffer.
        policy: when rows are sent.
    """

    gives_up: Callable[[float], bool] | None = None

    def __init__(self, connection: Connection, table: str, sharing: Sharing, unacknowledged: UnacknowledgedInserts, policy: FlushPolicy) -> None:
        super().__init__(unacknowledged, policy)
        self.connection, self._table, self._sharing = connection, table, sharing
        self.name = f"the writer of table {table!r} at {connection.address}"
        self._first: _First | None = None
        self._following = False
        self._away_since: float | None = None  # Since when something is due, and the server is not there.
        self._steady = True  # The call that is open now was acknowledged something, or is the first one.
        self._until: float | None = None  # When those that are there must be stored, once nobody waits for them.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiters: set[queue.SimpleQueue[None]] = set()

    # -- the user's thread --------------------------------------------------------------------------------------------------------------------

    @property
    def _connected(self) -> bool:
        return self.engine.sending is not None

    def open(self, schema: Schema, rows: int) -> None:
        """Waits until a call is open for blocks of that schema, of about so many rows, or until the writer failed; see `check`."""
        if self._first is None:
            self._first = _First(schema, rows)
        while self.call is None and self.error is None:
            self.check_open()
            self.connection.check_open()
            if self.is_lost:
                raise self.connection.gone_error()
            if not self._following:
                _live.add(self)
                start_reader(self._follow)
            self._listen(lambda: self.call is not None or self.error is not None, POLL_SECONDS)

    def ask(self, question: Callable[[], T]) -> T:
        """The result of `question`, which asks the server in a thread of its own: gRPC does not bear an interrupt of its caller."""
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except BaseException as error:  # noqa: BLE001 - the thread that asks raises it.
                answers.put((None, error.with_traceback(None)))

        start_reader(ask)
        answer, error = answers.get()
        if error is not None:
            raise error
        return cast("T", answer)

    def await_room(self) -> None:
        """Waits while too much is in flight, unless it is given up. Raises as `check` does."""
        self._wait(lambda: not self.engine.is_full or self.is_lost, None)

    @property
    def is_lost(self) -> bool:
        """Whether nobody waits for the server any more, because it is away."""
        return self.gives_up is not None and self.gives_up(self.away_seconds)

    @property
    def away_seconds(self) -> float:
        """For how long the server has been away while something was due."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    def flush_unless_lost(self, timeout: float | None) -> bool:
        """As `flush`, unless it is given up, or another thread takes rows back. Gives whether everything is stored."""
        last = self._sealed(self._leaving)
        self._wait(lambda: self.engine.state.acknowledged >= last or self.is_lost or self.engine.state.taken < last, timeout)
        return self.engine.state.acknowledged >= last

    def withdraw(self) -> list[InsertMessage]:
        """Takes back what was never sent. It is not to be called by a thread that can be interrupted: an interrupt would lose it."""
        with self.lock:
            return self.engine.withdraw()

    def flush(self, timeout: float | None) -> None:
        """Sends what is staged, and waits until it is stored, at most `timeout` seconds for each answer. Raises as `check` does."""
        last = self._sealed(self._leaving)
        self._wait(lambda: self.engine.state.acknowledged >= last, timeout)

    def close(self, timeout: float | None) -> None:
        """Flushes, and ends. An interrupt leaves it closed for rows, and what it holds on its way."""
        last = self._sealed(leaving=True)
        self._wait(lambda: self.engine.state.acknowledged >= last, timeout)
        self.end("it was closed")

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Waits until done(), at most `timeout` seconds (None: the connection's timeout) for each acknowledgement."""
        seconds = self.connection.timeout if timeout is None else timeout
        while not done():
            self.check()
            self._check_not_over()
            before = self.engine.state.acknowledged
            heard = lambda: done() or self.error is not None or self._over or self.engine.state.acknowledged != before  # noqa: B023, E731
            if not self._listen(heard, seconds) and not self._listen(heard, GRACE_SECONDS):
                gone = timeout is None and not self._connected
                self.fail(self.connection.gone_error() if gone else self.connection.late_error())
        self.check()

    def _listen(self, heard: Callable[[], bool], seconds: float) -> bool:
        """Waits until `heard` is true, at most so many seconds, and gives whether it is. An interrupt breaks nothing here."""
        self._release_lock()
        waiter: queue.SimpleQueue[None] = queue.SimpleQueue()
        until = time.monotonic() + seconds
        try:
            self._waiters.add(waiter)
            while not heard():
                left = until - time.monotonic()
                if left <= 0:
                    return heard()
                try:
                    waiter.get(timeout=left if self.gives_up is None else min(left, LOOK_SECONDS))
                except queue.Empty:
                    continue
        finally:
            self._waiters.discard(waiter)
        return True

    # -- any thread, a finalizer's among them ---------------------------------------------------------------------------------------------------

    def drain(self, seconds: float | None = None) -> None:
        """Sends what is there for at most so many seconds (None: the connection's timeout), then ends. Does not wait, and takes no lock."""
        if not self.connection.owner.is_here:  # A fork has not got the threads.
            return
        self._until = time.monotonic() + (self.connection.timeout if seconds is None else seconds)
        self._leaving = True
        call = self.call
        if call is None and not self._following:
            self.end("")
        elif call is not None:
            call.answers.end_at(self._until)
        self._wake_sender()

    def is_drained(self, seconds: float) -> bool:
        """Whether all of it was sent, after at most so many seconds."""
        return self._listen(lambda: self._over or self.error is not None, max(0.0, seconds))

    def give_up(self, why: str) -> None:
        """Ends at once. Rows that are not acknowledged are counted in the log, and handed back by the next call of the writer, if one comes."""
        if self.engine.state.rows:
            self.fail(ClosedError(f"{self.name} was closed: {why}"))
        self.end(why)

    def end(self, why: str) -> None:
        """Ends at once. Rows that are not acknowledged are counted in the log."""
        with self.lock:
            dropped = 0 if self._over else self.engine.state.rows
            if not self._over and not self.engine.state.blocks and not self._wrote_episodes:
                self._unacknowledged.writer_ids.give_back(self.engine.insert_ids)
            self._over = True
        if dropped:
            log.warning("%s dropped %d rows: %s", self.name, dropped, why)
        if self.call is not None:
            self.call.retire()
        self._changed()
        _live.discard(self)

    @property
    def _wrote_episodes(self) -> bool:
        """Whether the rows are steps: a writer id that another writer took would say that the episodes of this one are still being written."""
        return self._first is not None and EPISODE_ID.name in self._first.schema.fields_by_name

    def _end_failed(self) -> None:
        """Ends a pipeline whose error is raised, with its rows."""
        with self.lock:
            self._over = True
        self.end("")

    def fail(self, error: ReplayError) -> None:
        """Keeps an error for the next call of the writer. Where no call will come, rows that are not acknowledged are counted in the log."""
        with self.lock:
            if self.error is None and not self._over:
                self.error = error.with_traceback(None)
        if self._until is not None:
            self.end(str(error))
        self._changed()

    def _changed(self) -> None:
        """Wakes the threads that wait in `_listen`."""
        for waiter in tuple(self._waiters):
            waiter.put(None)

    def _wake_sender(self) -> None:
        """Says that there is, or is about to be, something to be sent."""
        if self._connected and self.call is not None:
            self.call.wake()
        else:
            self._wakes.put(None)

    # -- the thread in which gRPC asks for messages ---------------------------------------------------------------------------------------------

    def _outgoing(self, requests: Requests) -> Iterator[Any]:
        """The messages of one call: what is put, and, once it is in use, the blocks that were not sent over it."""
        sending: Sending[InsertMessage] | None = None
        while (message := self._next_put(requests)) is not None:
            if message is not WAKE_UP:
                yield message
                continue
            if sending is None and self._connected and self._last_call.is_behind(requests):
                sending = self.engine.sending
            if sending is not None:
                self._seal_in_time()
                while (block := self._next_block(sending)) is not None:
                    yield block.encoded

    def _next_put(self, requests: Requests) -> Any:
        """What is put next; a wake when the time has come for the block that is being filled."""
        try:
            return requests.get(timeout=self._seconds_left())
        except queue.Empty:
            return WAKE_UP

    def _seconds_left(self) -> float | None:
        """Until the block that is being filled is to be sent. None: there is none, or no room for it, and an acknowledgement will tell."""
        with self.lock:
            left = self.engine.seconds_left(time.monotonic())
            return None if left is None or not self._connected else max(0.001, left)

    def _seal_in_time(self) -> None:
        """Sends the block that is being filled, where it is time; and ends what is to end."""
        with self.lock:
            if self._until is not None:
                self._seal()
                if not self.engine.state.blocks:
                    self.end("a batch was given in part")
                return
            left = self.engine.seconds_left(time.monotonic())
            if left is not None and left <= 0:
                self._seal()
                self.engine.drop_staging()

    def _next_block(self, sending: Sending[InsertMessage]) -> InsertMessage | None:
        """The next block that goes over a call, if there is one."""
        block, messages = sending.next(), self._last_call.messages
        if block is None or messages.carries(block):
            return block
        with self.lock:  # It lies in the memory of a call that was lost.
            return self.engine.adopt(messages, block)

    # -- the thread that follows the acknowledgements -------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Takes acknowledgements for as long as the pipeline lives, over another call where one was lost."""
        with self.lock:
            if self._following:  # Started twice, by a thread that was interrupted in between.
                return
            self._following = True
        try:
            self.connection.retried(self._attempt)
        except ReplayError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next call of the writer raises it.
            self.fail(InternalError(f"the writer failed: {error!r}"))

    def _attempt(self, budget: RetryBudget) -> None:
        try:
            self._take_acknowledgements(budget)
        except ReplayError as error:
            away = isinstance(error, ServerUnavailableError)
            self._away_since = (self._away_since or time.monotonic()) if away else None
            raise

    def _take_acknowledgements(self, budget: RetryBudget) -> None:
        call = self._current(budget)
        if call is None:
            return
        try:
            for answer in call.answers.without_deadline():
                self._acknowledge(call, answer.rows)
                budget.answered()
            if not self._over:
                raise self.connection.lost_error("ended the call")
        except ReplayError as error:
            self._lose(call, budget, waited=isinstance(error, RateLimitedError))
            if not self._over:
                raise

    def _current(self, budget: RetryBudget) -> InsertCall | None:
        """The call that is open; where it was lost, another one, once there is something to send over it. None where the writer is at its end."""
        if self._connected:
            return self.call
        while self.call is not None and not self._has_something_due() and not self._over:  # Nothing is late before something is to be sent.
            self._away_since = None
            self._await_wake()
            self.connection.check_open()
            budget.renew()
        return None if self._over else self._use(self._opened(budget))

    def _await_wake(self) -> None:
        try:
            self._wakes.get(timeout=min(POLL_SECONDS, max(FIRST_PAUSE, self._policy.flush_seconds)))
        except queue.Empty:
            return

    def _has_something_due(self) -> bool:
        with self.lock:
            self._seal_in_time()
            return bool(self.engine.state.blocks)

    def _opened(self, budget: RetryBudget) -> InsertCall:
        if self._first is None:
            raise InternalError("a call is opened for rows, and there were none")
        schema, rows = self._first
        return open_inserts(self.connection, self._table, self._sharing, schema, rows, budget, most_rows=MAX_BATCH_SIZE, outgoing=self._outgoing)

    def _use(self, call: InsertCall) -> InsertCall | None:
        """Makes it the call over which blocks go, from the first one on that was not acknowledged."""
        with self.lock:
            if self._over:
                call.close()
                return None
            self.call = call
            self.engine.limit(call.segments)
            self.engine.opened()
            if self._until is not None:
                call.answers.end_at(self._until)
        call.wake()
        self._changed()
        return call

    def _lose(self, call: InsertCall, budget: RetryBudget, *, waited: bool) -> None:
        """Notes that a call is lost. The time that the server has to come back begins, unless it began with a loss before, and nothing came since.

        A server that `waited` for a rate limiter, and gave up, was there all the time.
        """
        call.close()
        with self.lock:
            self.engine.lost()
            if self._steady and not waited:
                budget.renew()
            self._steady = False

    def _acknowledge(self, call: InsertCall, rows: int) -> None:
        with self.lock:
            call.messages.release(self.engine.acknowledge(rows))
            self._steady, self._away_since = True, None
            self._send_what_waits()
        self._changed()

    def _send_what_waits(self) -> None:
        """Sends the block that is being filled, where a unit of it is complete, and the connection is not busy any more."""
        if self.engine.has_unit_due:
            self._seal()
        elif self.engine.staging is not None or self._until is not None:
            self._wake_sender()


_live: set[Pipeline] = set()
"""Those that have threads. Single operations of a set are safe in threads, and where they are interrupted."""


def finish_all(connection: Connection | None, seconds: float, why: str) -> None:
    """Ends all pipelines (of a connection), each after it sent what it has, at most within so many seconds."""
    pipelines = [pipeline for pipeline in tuple(_live) if connection in (None, pipeline.connection) and pipeline.connection.owner.is_here]
    for pipeline in pipelines:
        pipeline.drain(seconds)
    until = time.monotonic() + seconds
    for pipeline in pipelines:
        if pipeline.is_interrupted_here() or not pipeline.is_drained(until - time.monotonic()):
            pipeline.give_up(why)


@atexit.register
def _finish_at_exit() -> None:
    # After this the connections are closed: what is registered last goes first.
    finish_all(None, EXIT_SECONDS, "the interpreter exits")
