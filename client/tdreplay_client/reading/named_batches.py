"""Random batches of changing sizes that are asked for one at a time, over calls that are held open between them."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from tensordict import TensorDict

from tdreplay.errors import CodecError, DeadlineError, OverloadedError, RateLimitedError, ReplayError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.batch_call import BatchCall
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.reading.single_batches import RETRY_SECONDS, Asked, Draw
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget, jittered
from tdreplay_client.transport.shared_memory import Sharing

__all__ = ["BegunBatch", "NamedBatches", "OneBatch"]

MOST_HELD = 4
"""The most calls that are held open: as many kinds of batches, or threads that ask for batches at once."""


class OneBatch(NamedTuple):
    """What one batch is to be.

    Attributes:
        kind: of which kind; its `rows` are the most that a batch of the kind has.
        rows: its number of rows.
        draw: its seed and number, or None.
        seconds: the most for which the server waits for its rows.
    """

    kind: Asked
    rows: int
    draw: Draw
    seconds: float

    @property
    def message(self) -> pb.NextBatch:
        """As a request names it."""
        if self.draw is None:
            return pb.NextBatch(rows=self.rows, wait_seconds=self.seconds)
        return pb.NextBatch(rows=self.rows, wait_seconds=self.seconds, seed=self.draw[0], batch=self.draw[1])


class _HeldCall:
    """A call that is held open, over which one batch after the other is named. It is used by one thread at a time."""

    def __init__(self, call: BatchCall, kind: Asked, transfer: DeviceTransfer) -> None:
        self.kind, self._call = kind, call
        self._batches: Iterator[PendingBatch] = call.batches(call.answers, transfer)
        self.close = weakref.finalize(self, end_call, call.requests, call.answers)

    @property
    def active(self) -> bool:
        return self._call.answers.active

    def name(self, one: OneBatch, budget: RetryBudget) -> None:
        self._call.answers.budget = budget
        self._call.name(one.message)

    def take(self, rows: int) -> TensorDict | None:
        """The batch that was named. None: the server ended the call."""
        pending = next(self._batches, None)
        if pending is None:
            return None
        if pending.head.batch_rows != rows:
            raise CodecError(f"a batch of {pending.head.batch_rows} rows came, and {rows} were asked for")
        self._call.credit.came()
        self._call.credit.take()
        return pending.take()


class BegunBatch:
    """A batch that was asked for. Either `take` is called or `close`, once."""

    def __init__(self, owner: NamedBatches, held: _HeldCall, rows: int) -> None:
        self._owner, self._held, self._rows = owner, held, rows

    def take(self) -> TensorDict | None:
        """The batch. It waits for it. None: the call failed, and one of its own will say what is wrong.

        Raises:
            DeadlineError: the server does not answer.
            RateLimitedError: it waited for as long as it might.
        """
        batch = None
        try:
            batch = self._held.take(self._rows)
        except (DeadlineError, RateLimitedError):
            raise
        except ReplayError as error:
            self._owner.failed(error)
        finally:
            self._owner.give_back(self._held, whole=batch is not None)
        return batch

    def close(self) -> None:
        """Does without it: its call ends, since it would come over it."""
        self._owner.give_back(self._held, whole=False)


class NamedBatches:
    """Random batches, each drawn when it is asked for. Several threads may use it: each has a call of its own meanwhile.

    The first batch of a kind needs a call of its own, whose answer says whether the server knows batches that are named: only then calls are held
    open. After one was lost that is looked at again, because the server may be another one by now.

    Args:
        connection: the connection to the server.
        table: the table's name.
        transfer: brings batches to the device.
        sharing: whether shared memory is used.
    """

    def __init__(self, connection: Connection, table: str, transfer: DeviceTransfer, sharing: Sharing) -> None:
        self._connection, self._table, self._transfer, self._sharing = connection, table, transfer, sharing
        self._lock = threading.Lock()
        self._kinds = deque[Asked](maxlen=MOST_HELD)
        self._idle: list[_HeldCall] = []
        self._held = 0
        self._understood = False
        self._not_before = 0.0

    def came_alone(self, kind: Asked, *, totals: bool) -> None:
        """Notes that a batch of a kind came over a call of its own, and whether it said of what it was drawn."""
        with self._lock:
            self._understood = totals
            if kind not in self._kinds:
                self._kinds.append(kind)

    def begin(self, one: OneBatch, budget: RetryBudget) -> BegunBatch | None:
        """Asks for a batch over a call that is open and idle. It waits for nothing. None: there is none."""
        self._connection.check_open()
        held = self._idle_one(one.kind)
        return None if held is None else self._begun(held, one, budget)

    def take(self, one: OneBatch, budget: RetryBudget) -> TensorDict | None:
        """A batch, over a call that is opened where none is idle. None: it needs a call of its own. Errors: as `BegunBatch.take`."""
        begun = self.begin(one, budget)
        if begun is None and self._may_open(one.kind):
            held = self._opened(one.kind, budget)
            begun = None if held is None else self._begun(held, one, budget)
        return None if begun is None else begun.take()

    def _begun(self, held: _HeldCall, one: OneBatch, budget: RetryBudget) -> BegunBatch:
        begun = BegunBatch(self, held, one.rows)
        try:
            held.name(one, budget)
        except BaseException:
            begun.close()
            raise
        return begun

    def _idle_one(self, kind: Asked) -> _HeldCall | None:
        with self._lock:
            found = next((held for held in self._idle if held.kind == kind), None)
            if found is None:
                return None
            self._idle.remove(found)
        if found.active:
            return found
        self.give_back(found, whole=False)
        self.failed(None)
        return None

    def _may_open(self, kind: Asked) -> bool:
        """Whether another call may be held open, which is counted as open then. One that is idle makes room for it."""
        with self._lock:
            if not self._understood or kind not in self._kinds or time.monotonic() < self._not_before:
                return False
            if self._held >= MOST_HELD:
                if not self._idle:
                    return False
                self._idle.pop(0).close()
                self._held -= 1
            self._held += 1
            return True

    def _opened(self, kind: Asked, budget: RetryBudget) -> _HeldCall | None:
        query = pb.SampleRequest(
            table=self._table,
            batch_size=kind.rows,
            sampler=kind.sampler,
            standing=True,
            knows_priorities=True,
            windows=kind.windows,
            wants_totals=True,
        )
        try:
            call = self._sharing.tried(lambda shared: BatchCall(self._connection, query, 1, shared, budget, named=True))
            return _HeldCall(call, kind, self._transfer.for_view(kind.view))
        except BaseException as error:
            with self._lock:
                self._held -= 1
            if not isinstance(error, ReplayError) or isinstance(error, DeadlineError):
                raise
            self.failed(error)
            return None

    def failed(self, error: ReplayError | None) -> None:
        """Notes that a call failed."""
        with self._lock:
            self._understood = False
            if isinstance(error, OverloadedError):
                self._not_before = time.monotonic() + jittered(RETRY_SECONDS)

    def give_back(self, held: _HeldCall, *, whole: bool) -> None:
        """Gives back a call that was used. `whole`: all that was asked for over it came, so that it may be used again."""
        with self._lock:
            if whole:
                self._idle.append(held)
                return
            self._held -= 1
        held.close()

    def close(self) -> None:
        """Ends the calls that are idle. Closing twice is allowed."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._held -= len(idle)
        for held in idle:
            held.close()
