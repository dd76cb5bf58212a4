"""What a writer holds, and how it changes, without a thread or a wait.

The thread of the user may be interrupted at any moment (Ctrl-C). So what a writer holds is a `Flight`, and a change of it is one assignment, with the
lock held; whoever has to act on it is told before, and looks when the lock is free.
"""

from __future__ import annotations

import inspect
import threading
from abc import abstractmethod
from dataclasses import replace
from typing import NamedTuple

import torch
from tensordict import TensorDict

from tdreplay.errors import CancelledError, ClosedError, InternalError, ReplayError
from tdreplay.schema import Schema
from tdreplay_client.writing.flight import Flight, handed_back
from tdreplay_client.writing.insert_ids import MOST_UNACKNOWLEDGED
from tdreplay_client.writing.insert_messages import block_layout, rows_per_block
from tdreplay_client.writing.inserts import InsertCall
from tdreplay_client.writing.staging import Staging
from tdreplay_client.writing.unacknowledged import Delivery, Part, UnacknowledgedInserts

__all__ = ["SMALL_BYTES", "FlushPolicy", "Holding", "is_nested"]

BUSY = 2
"""Messages in flight from which on units share one: one that the server works on, and one that waits for it."""
SHARED_UNITS = 8
SMALL_BYTES = 256 << 10
"""The most of them, and the most bytes, in a message that is shared."""


class FlushPolicy(NamedTuple):
    """When rows are sent: `flush_rows` at once, or when the oldest waited for `flush_seconds`; `max_in_flight` units wait for acknowledgements."""

    flush_rows: int
    flush_seconds: float
    max_in_flight: int
    cast: bool = False


class Holding:
    """The rows of one writer that are not acknowledged.

    Attributes:
        insert_ids: under which its blocks go out.
        lock: held while the flight is looked at and changed.
        flight: the rows.
        call: over which blocks go, or went last; None: there was none yet.
        error: what ended it, for the next call of the writer to raise.
        inside: whether a call of the writer holds the lock.

    Args:
        unacknowledged: the failed inserts of the buffer.
        policy: when rows are sent.
    """

    def __init__(self, unacknowledged: UnacknowledgedInserts, policy: FlushPolicy) -> None:
        self._unacknowledged, self._policy = unacknowledged, policy
        self.insert_ids = unacknowledged.writer_ids.take()
        self.lock = threading.RLock()
        self.flight = Flight()
        self.call: InsertCall | None = None
        self.error: ReplayError | None = None
        self.inside = False
        self._most = self._max_in_flight = min(policy.max_in_flight, MOST_UNACKNOWLEDGED)
        self._leaving = self._over = False  # No rows come any more; nothing is sent any more.

    @abstractmethod
    def _wake_sender(self) -> None:
        """Says that there is, or is about to be, something to be sent."""

    @abstractmethod
    def fail(self, error: ReplayError) -> None:
        """Keeps an error for the next call of the writer."""

    @abstractmethod
    def _told(self) -> None:
        """Ends what failed: its error is raised, with its rows."""

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
            ReplayError: something did. Its ``rows`` are those that are not acknowledged, and then those that were just `given`. It stays `error`,
                to be raised again, until the call that raises it forgets it as its last step: an interrupt may come before that.
        """
        with self.lock:
            error = self.error
            if error is None:
                return
            self._hand_back(error, given)
            try:
                raise error
            finally:
                self._told()
                del error  # Its traceback holds this frame: together they would keep the shared memory mapped.

    def check_batch(self, batch: Delivery) -> None:
        """As `check`. The batch that was just given counts once, where it is the one whose `extend` was interrupted."""
        with self.lock:
            rest = self.flight.rest
            again = rest is not None and rest.has_left(batch.columns, batch.schema, batch.rows)
            self.check(None if again else torch.cat(batch.batches(batch.done)))

    def staged(self, schema: Schema | None, rows: int) -> Staging:
        """The block that is being filled, with room for `rows` rows more: a new one where the old one has none. With the lock held, and a call."""
        staging = self.flight.staging
        if staging is not None and staging.room >= rows:
            return staging
        if schema is None:
            raise InternalError("rows are staged before their schema is known")
        self.seal()
        self.drop_staging()
        unit = max(rows, self._policy.flush_rows)
        room = max(min(unit, rows_per_block(schema)), min(unit * SHARED_UNITS, SMALL_BYTES // max(1, schema.row_bytes)))
        staging = Staging(self._last_call, schema, room, self.insert_ids.next(), cast=self._policy.cast)
        self._wake_sender()
        self.flight = self.flight.with_staging(staging)
        return staging

    def end_unit(self) -> None:
        """Sends the block that is being filled, unless it is worth while to wait for more. With the lock held."""
        flight, staging = self.flight, self.flight.staging
        if staging is not None:
            staging.end_unit()
            if staging.full or not self._is_busy or flight.units + staging.units > self._max_in_flight:
                self.seal()

    @property
    def _is_busy(self) -> bool:
        return len(self.flight.blocks) >= BUSY

    def seal(self) -> None:
        """Sends the block that is being filled. With the lock held."""
        staging = self.flight.staging
        if staging is not None and staging.rows:
            block = replace(staging.message(), units=max(1, staging.units))
            self._wake_sender()
            self.flight = self.flight.with_staged(block)
            staging.leave(block)

    def begin(self, delivery: Delivery) -> None:
        """Begins to add a batch in blocks of its own, after all that was appended."""
        with self.lock:
            try:
                self.inside = True
                self.check_open()
                if self.error is not None:
                    self.check_batch(delivery)
                self.seal()
                self.drop_staging()
                self.flight = self.flight.with_rest(delivery if delivery.sent < delivery.rows else None)
            finally:
                self.inside = False

    def add(self, delivery: Delivery, part: Part) -> None:
        """Sends the next block of a batch."""
        with self.lock:
            try:
                self.inside = True
                self.check()
                self._check_not_over()
                block = self._last_call.new_message(block_layout(delivery.schema, part.stop - part.start), part.insert_id)
                block.fill(delivery.columns, part.start, part.stop)
                self._wake_sender()
                flight = self.flight.with_block(replace(block, units=1), delivery if part.stop < delivery.rows else None)
                self.flight, delivery.sent = flight, part.stop
            finally:
                self.inside = False

    def break_off(self, delivery: Delivery, error: BaseException) -> None:
        """Settles what becomes of a batch whose `extend` was ended by an error that does not have its rows.

        All of it is in, or none of it, or it is the pipeline that failed.
        """
        with self.lock:
            if self.flight.rest is delivery and not delivery.done < delivery.sent:
                self.flight = self.flight.with_rest(None)
            if self.flight.rest is not delivery:
                self._note_whole(delivery, error)
            elif isinstance(error, ReplayError):
                error.rows = torch.cat(delivery.batches(delivery.sent))
                self.flight = self.flight.with_rest(None)
            else:
                delivery.keep()
                left, rows = delivery.rows - delivery.sent, delivery.rows
                self.fail(CancelledError(f"extend was interrupted ({type(error).__name__}): {left} of {rows} rows were not on their way yet"))

    def _note_whole(self, delivery: Delivery, error: BaseException) -> None:
        """Notes that the rows of a batch that is on its way, or was on its way before, are known when they are given again."""
        if delivery.sent == delivery.rows:
            delivery.settle()
        self._unacknowledged.note(delivery, error)

    def _sealed(self, leaving: bool) -> int:
        """Sends what is staged, and says how many blocks there are now."""
        with self.lock:
            try:
                self.inside = True
                self.check()
                self._check_not_over()
                self.seal()
                self._leaving = leaving
                return self.flight.sent
            finally:
                self.inside = False

    @property
    def is_untouched(self) -> bool:
        """Whether no row was taken so far."""
        return not self.flight.sent and (self.flight.staging is None or not self.flight.staging.rows)

    @property
    def block_bytes(self) -> int:
        """That the blocks of a large batch aim at."""
        return self._last_call.block_bytes

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
            self._let_go()
        return nested

    def _let_go(self) -> None:
        """Gives back the lock where this thread still has it, because an exception (of a debugger) came as it was about to be given back."""
        try:
            while True:
                self.lock.release()
        except RuntimeError:  # So a lock says that this thread does not have it.
            return

    def _hand_back(self, error: ReplayError, given: TensorDict | None) -> None:
        """Gives an error the rows that were not acknowledged, and notes under which numbers they are known."""
        found = handed_back(self.flight, given)
        if found is not None:
            rows, delivery = found
            self._unacknowledged.note(delivery, error)
            error.rows = rows

    @property
    def _last_call(self) -> InsertCall:
        if self.call is None:
            raise InternalError("a block is made for a call, and there was none")
        return self.call

    def drop_staging(self) -> None:
        """Forgets the block that is being filled. With the lock held."""
        staging = self.flight.staging
        self.flight = self.flight.with_staging(None)
        if staging is not None:
            staging.leave(None)

    def _has_room(self, staging: Staging) -> bool:
        """Whether the block that is being filled can be sent without a wait."""
        return not self.flight.blocks or self.flight.units + max(1, staging.units) <= self._max_in_flight


_MODULES = (__name__, __name__.replace("holding", "pipeline"), __name__.replace("holding", "writer"))


def is_nested() -> bool:
    """Whether a call of a writer was interrupted by what runs now: whether there is one further down this thread's stack than the one that asks."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals["__name__"] in _MODULES:
        frame = frame.f_back
    while frame is not None and frame.f_globals["__name__"] not in _MODULES:
        frame = frame.f_back
    return frame is not None
