"""The engine of a writer behind a lock: what the user's thread does with it.

The user's thread may be interrupted at any moment (Ctrl-C). So a change is one assignment of a whole state, with the lock held. Whoever has to act on
it is woken before, and looks when the lock is free.
"""

from __future__ import annotations

import inspect
import threading
import time
from abc import abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from tdreplay.errors import CancelledError, ClosedError, FailedPreconditionError, InternalError, ReplayError
from tdreplay.schema import Schema
from tdreplay_client.writing.insert_calls import InsertCall
from tdreplay_client.writing.insert_engine import FlushPolicy, WriterEngine
from tdreplay_client.writing.insert_state import Batch, Part
from tdreplay_client.writing.staging import Staging
from tdreplay_client.writing.unacknowledged import Record, UnacknowledgedInserts, handed_back, record_of, same_rest

__all__ = ["GuardedEngine", "is_nested"]


class _Settlement(NamedTuple):
    """What becomes of a batch whose `extend` was broken off.

    Attributes:
        record: By it the rows are known when they are given again; None: they are new then.
        rest: The rows that stay with the writer.
        error: What the next call raises.
        taken: The batch, where all of it was taken.
    """

    record: Record | None = None
    rest: Batch | None = None
    error: ReplayError | None = None
    taken: Batch | None = None


class GuardedEngine:
    """The rows of one writer that are not acknowledged, and what its calls do with them.

    Attributes:
        engine: the rows.
        lock: held while the engine is looked at and changed.
        call: the call over which blocks go, or went last; None: there was none yet.
        error: what ended the writer, for its next call to raise.
        inside: whether a call of the writer holds the lock.
        has_priorities: whether any row was given with a priority.
        mark: what the rows left that were taken last, of those that came with marks; see `Batch`.
        broken_off: the batch of an `extend` that an error ended, as it was when the call began, the last part of it that was looked at (None:
            none was), and the error. `settle` has to come next.

    Args:
        unacknowledged: the failed inserts of the buffer.
        policy: when rows are sent.
    """

    def __init__(self, unacknowledged: UnacknowledgedInserts, policy: FlushPolicy) -> None:
        self._unacknowledged, self._policy = unacknowledged, policy
        self.engine = WriterEngine(unacknowledged.writer_ids.take(), policy)
        self.lock = threading.RLock()
        self.call: InsertCall | None = None
        self.error: ReplayError | None = None
        self.inside = False
        self.has_priorities = False
        self.mark: Any = None
        self.broken_off: tuple[Batch, Part | None, BaseException] | None = None
        self._settlement: _Settlement | None = None
        self._leaving = self._over = False  # No rows come any more; nothing is sent any more.

    @abstractmethod
    def _wake_sender(self) -> None:
        """Says that there is, or is about to be, something to be sent."""

    @abstractmethod
    def fail(self, error: ReplayError) -> None:
        """Keeps an error for the next call of the writer."""

    @abstractmethod
    def _end_failed(self) -> None:
        """Ends a writer whose error is raised, with its rows."""

    def check_open(self) -> None:
        """Passes where rows can be given.

        Raises:
            ClosedError: the writer was closed, or failed, and said so.
        """
        if (self._over or self._leaving) and self.error is None:
            raise ClosedError("the writer is closed")

    def check(self, given: TensorDict | None = None) -> None:
        """Passes where nothing went wrong.

        Raises:
            ReplayError: something did. Its ``rows`` are those that are not acknowledged, and then those that were just `given`. It stays `error`, to
                be raised again, until the call that raises it forgets it as its last step (`forget`): an interrupt may come before that.
        """
        with self.lock:
            if self.broken_off is not None:
                self.settle()
            error = self.error
            if error is None:
                return
            self._hand_back(error, given)
            try:
                raise error
            finally:
                self._end_failed()
                del error  # Its traceback holds this frame: together they would keep the shared memory mapped.

    def forget(self, error: ReplayError) -> None:
        """Forgets an error that is about to reach the user. Nothing can interrupt this: either it is forgotten, or the next call raises it again."""
        if error is self.error:
            self.error = None

    def check_marks(self, marks: tuple[Any, Any] | None) -> None:
        """Passes where the mark is the one before rows that are about to be taken. With the lock held.

        Raises:
            FailedPreconditionError: it is another one: a call of a signal handler, or of another thread, came between.
        """
        if marks is not None and self.mark is not marks[0]:
            raise FailedPreconditionError(
                "a writer of trajectories is for one thread, and a signal handler must not write in the middle of its calls"
            )

    def check_batch(self, batch: Batch) -> None:
        """As `check`. The batch that was just given counts once, where it is the one whose `extend` was interrupted."""
        with self.lock:
            interrupted = self.engine.state.batch
            again = interrupted is not None and same_rest(interrupted, batch)
            self.check(None if again or not batch.rest() else torch.cat(batch.rest()))

    def staged(self, schema: Schema | None, rows: int, *, has_priorities: bool) -> Staging:
        """The block that is being filled, with room for `rows` rows more: a new one where the old one has none. With the lock held, and a call.

        Its rows have priorities, or none of them has.
        """
        staging = self.engine.staging
        if staging is not None and staging.room >= rows and staging.has_priorities is has_priorities:
            return staging
        if schema is None:
            raise InternalError("rows are staged before their schema is known")
        self._seal()
        self.engine.drop_staging()
        self._wake_sender()
        self.engine.stage(self._last_call.messages, schema, rows, time.monotonic(), has_priorities=has_priorities)
        return self.staged(schema, rows, has_priorities=has_priorities)

    def end_unit(self) -> None:
        """Ends a unit of the block that is being filled, and sends the block unless it is worth while to wait for more. With the lock held."""
        staging = self.engine.staging
        if staging is not None and self.engine.end_unit(staging):
            self._seal()

    def _seal(self) -> None:
        """Sends the block that is being filled. With the lock held."""
        staging = self.engine.staging
        if staging is not None and staging.rows:
            self._wake_sender()
            self.engine.seal()

    def begin(self, batch: Batch) -> None:
        """Begins to add a batch in blocks of its own, after all that was appended."""
        with self.lock:
            try:
                self.inside = True
                self.check_open()
                if self.error is not None:
                    self.check_batch(batch)
                self.check_marks(batch.marks)
                self._seal()
                self.engine.drop_staging()
                self.engine.begin(batch)
            finally:
                self.inside = False

    def next_part(self) -> Part | None:
        """The next part of the batch that was begun; None where there is none left."""
        return self.engine.next_part(self._last_call.block_bytes)

    def add(self, batch: Batch, part: Part) -> None:
        """Sends the next part of the batch that was begun."""
        with self.lock:
            try:
                self.inside = True
                self.check()
                self._check_not_over()
                message = self._last_call.messages.new(batch.layout(part), part.insert_id, has_priorities=batch.has_priorities(part))
                message.fill(batch.sent_columns, part.start, part.stop)
                self._wake_sender()
                self.engine.take(replace(message, units=1))
            finally:
                self.inside = False

    def settle(self) -> None:
        """Settles what becomes of a batch whose `extend` was broken off. After an interrupt the next call of the writer goes on here."""
        with self.lock:
            if self.broken_off is None:
                return
            if self._settlement is None:
                self._settlement = self._settled(*self.broken_off)
            record, rest, error, taken = self._settlement
            if record is not None:
                self._unacknowledged.keep(record)
            if taken is not None and taken.marks is not None:
                self.mark = taken.marks[1]
            self.engine.state = self.engine.state.with_batch(rest)
            if error is not None:
                self.fail(error)
            self.broken_off = self._settlement = None

    def _settled(self, batch: Batch, part: Part | None, error: BaseException) -> _Settlement:
        """What becomes of it: all of it is in, or none of it, or it is the writer that failed."""
        rest = self.engine.state.batch
        if rest is None or rest.columns is not batch.columns:  # None of it was begun, or all of it is in.
            taken = None if part is None else batch.finished()
            return _Settlement(record_of(taken or batch, error), rest, taken=taken)
        if rest.done == batch.done:
            return _Settlement(record_of(batch, error))
        if isinstance(error, ReplayError):
            error.rows = torch.cat(rest.rest())
            return _Settlement()
        left = f"{rest.rows - rest.done} of {rest.rows} rows were not on their way yet"
        return _Settlement(rest=rest.copied(), error=CancelledError(f"extend was interrupted ({type(error).__name__}): {left}"))

    def _sealed(self, leaving: bool) -> int:
        """Sends what is staged, and gives the number of blocks until now."""
        with self.lock:
            try:
                self.inside = True
                self.check()
                self._check_not_over()
                self._seal()
                self._leaving = leaving
                return self.engine.state.taken
            finally:
                self.inside = False

    @property
    def is_over(self) -> bool:
        """Whether it is at its end, and said what there was to say."""
        return self._over and self.error is None

    def _check_not_over(self) -> None:
        """Passes where what it holds is still on its way."""
        if self._over:
            raise ClosedError("the writer was closed")

    def is_interrupted_here(self) -> bool:
        """Whether this thread is in the middle of a call that holds the lock: this is a signal handler then, and must not wait for that call."""
        if not self.inside:
            return False
        nested = is_nested()
        if not nested:
            self._release_lock()
        return nested

    def release_left_lock(self) -> None:
        """Gives back the lock where an exception left it to this thread. So another thread can have it that this one is about to wait for."""
        if not self.inside:
            self._release_lock()

    def _release_lock(self) -> None:
        """Gives back the lock where this thread still has it, because an exception (of a debugger) came as it was about to be given back."""
        try:
            while True:
                self.lock.release()
        except RuntimeError:  # So a lock says that this thread does not have it.
            return

    def _hand_back(self, error: ReplayError, given: TensorDict | None) -> None:
        """Gives an error the rows that were not acknowledged, and notes under which insert ids they are known."""
        found = handed_back(self.engine.state, given, has_priorities=self.has_priorities)
        if found is not None:
            rows, batch = found
            self._unacknowledged.note(batch, error)
            error.rows = rows

    @property
    def _last_call(self) -> InsertCall:
        if self.call is None:
            raise InternalError("a block is made for a call, and there was none")
        return self.call


_MODULES = tuple(__name__.replace("guarded_engine", name) for name in ("guarded_engine", "pipeline", "writer"))


def is_nested() -> bool:
    """Whether a call of a writer was interrupted by what runs now: whether there is one further down this thread's stack than the one that asks."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals["__name__"] in _MODULES:
        frame = frame.f_back
    while frame is not None and frame.f_globals["__name__"] not in _MODULES:
        frame = frame.f_back
    return frame is not None
