"""Streams: batches that a thread reads ahead."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import (
    ClosedError,
    EmptyTableError,
    FailedPreconditionError,
    OverloadedError,
    OverwrittenError,
    RateLimitedError,
    ServerUnavailableError,
    TableChangedError,
    UnauthenticatedError,
)
from tdreplay.limits import MAX_INT64
from tdreplay.priorities import Updated, checked_priorities, row_ids_of
from tdreplay.tokens import check_keys, check_same, whole_of
from tdreplay.views import TableView
from tdreplay_client.reading.batch_call import BatchCall
from tdreplay_client.reading.batch_credit import BatchCredit
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.reading.priority_updates import priority_updates
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import GRACE_SECONDS, RetryBudget
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.transport.threads import start_reader

__all__ = ["BatchStream", "new_priorities"]

JOIN_SECONDS = 5.0
LAST_WORDS_SECONDS = 0.5
"""How long `close` lets the server hear what was said last: batches that were taken, and updates of priorities."""
MAY_PASS = (ServerUnavailableError, RateLimitedError, OverloadedError, UnauthenticatedError)
"""What may end one call, and not the next one: `Connection.retried` decides whether there is one."""
VERSION = 1
"""Of the tokens of streams."""


class _Progress(NamedTuple):
    """A message without a batch: the server is at work.

    Attributes:
        head: Its fields.
    """

    head: Any


Ready: TypeAlias = "queue.SimpleQueue[PendingBatch | _Progress | BaseException]"
"""What came, and at last how the call ended."""


class BatchStream(OfOneProcess, Iterator[TensorDict]):
    """Batches of a table on the training device. The next ones are on their way while one is used.

    A stream ends with `close` (or ``with``), or when nothing refers to it any more. It goes on when its server was lost and is back within the
    connection's timeout. An error is raised in place of the batch that it concerns; no batches come after it. Only what says that a
    wait was too long may be followed by batches, `RateLimitedError` and the `EmptyTableError` of a stream that waits: whoever asks again waits again.

    Where rows leave when they were drawn, or a rate limiter counts them, a batch counts as drawn when it is taken from the stream, and not while it
    is read ahead. Batches that were not taken when the stream ends, or its connection is lost, are drawn again.

    Attributes:
        shared: whether batches come through memory that is shared with the server.
        losses: how often the connection was lost.

    Args:
        connection: the connection to the server.
        query: the first request of a Sample call.
        transfer: brings batches to the device.
        prefetch: the most batches that are on their way or wait here.
        sharing: whether shared memory is used.
        wait: whether a batch of an empty table waits for the table's first row, at most for the connection's timeout.
        counted: whether the table counts the batches that are taken.
        view: what is made of the windows of a batch. None: the rows come as they are.

    Raises:
        ReplayError: the server refused the query.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a stream there"
    _DRAWN_ANEW: tuple[type[BaseException], ...] = (TableChangedError,)  # Between the draw of a batch and its copy: the rows of now are drawn.

    def __init__(
        self,
        connection: Connection,
        query: Any,
        transfer: DeviceTransfer,
        prefetch: int,
        sharing: Sharing,
        *,
        wait: bool = False,
        counted: bool = False,
        view: TableView | None = None,
    ) -> None:
        self._connection, self._query, self._prefetch, self._sharing = connection, query, prefetch, sharing
        self._transfer = transfer.for_view(view)
        self._view, self._place = view, self._beginning()
        self._over = self._lost = False
        self._waits, self._counted, self.shared, self.losses = wait, counted, False, 0
        self._call: BatchCall | None = None
        self._updated = Updated(0, 0)  # Over the calls before this one.
        self._end: Callable[[], object] = lambda: None
        self._reader: threading.Thread | None = None
        try:
            connection.retried(self._open)
        except EmptyTableError:
            if not wait:
                raise
            self._lost = True  # The first batch waits for the first row, and not this: whoever opens the stream may be the one who adds that row.
        except OverwrittenError:
            self._lost = True  # It is raised in place of its batch.

    # -- where it stands ----------------------------------------------------------------------------------------------------------------------

    def _beginning(self) -> Any:
        """The place of the first batch: its number."""
        return int(self._query.first_batch)

    def _query_at(self, place: Any, budget: RetryBudget) -> Any:
        """The first request of a call that begins at `place`."""
        self._query.first_batch, self._query.wait_seconds = place, budget.server_wait
        return self._query

    def _after(self, place: Any, pending: PendingBatch) -> Any:
        """The place after a batch that came at `place`."""
        return place + 1

    def _without_batch(self, place: Any, head: Any) -> Any:
        """The place after a message without a batch that came at `place`."""
        return place

    def state_dict(self) -> dict[str, Any]:
        """A token for `load_state_dict`: the seed and the number of the next batch, as a dict that `json.dumps` takes. It costs no call.

        Raises:
            FailedPreconditionError: the stream has no seed, so its batches cannot be drawn again.
        """
        if not self._query.HasField("seed"):
            raise FailedPreconditionError("a stream without a seed has no place: its batches cannot be drawn again. Give it a seed")
        return {**self._settings(), "seed": self._query.seed, "position": self._place}

    def _settings(self) -> dict[str, Any]:
        """What two streams must have in common where one goes on with the token of the other."""
        view = {} if self._view is None else {"view": self._view.view.to_json()}  # Older tokens have none.
        return {"version": VERSION, "table": self._query.table, "batch_size": self._query.batch_size, **view}

    def load_state_dict(self, token: Mapping[str, Any]) -> None:
        """Goes on with the batch that would have come next when `state_dict` of another stream was called. It takes that one's seed.

        The batches are the same as long as the table holds the same rows.

        Raises:
            TokenError: it is no token, or one of another table, batch size or view. The stream goes on where it was.
        """
        same = self._settings()
        entries = check_keys(token, (*same, "seed", "position"))
        check_same(entries, same)
        seed, place = whole_of(entries, "seed", 0, MAX_INT64), whole_of(entries, "position", 0, MAX_INT64)
        self.break_off()
        self._query.seed, self._place = seed, place

    # -- batches ------------------------------------------------------------------------------------------------------------------------------

    def _open(self, budget: RetryBudget) -> None:
        """Opens a call, grants the first batches, and starts to read them."""
        query = self._query_at(self._place, budget)
        self._updated, self._call = self.updated, None
        self._call = call = self._sharing.tried(lambda shared: BatchCall(self._connection, query, self._prefetch, shared, budget))
        self.shared = call.segments is not None
        self._ready: Ready = queue.SimpleQueue()
        self._end = weakref.finalize(self, end_call, call.requests, call.answers)
        self._lost = False
        call.grant()
        batches = call.batches(call.answers.without_deadline(), self._transfer, partial(_note, self._ready))
        self._reader = start_reader(_read, batches, self._ready, call.credit)
        if self._over:  # Another thread closed the stream meanwhile, and did not see this call.
            self._end_call()

    def __next__(self) -> TensorDict:
        self._connection.owner.check()
        if self._over:
            raise StopIteration
        before = self._place
        try:
            batch, self._place = self._connection.retried(self._taken, for_rows=self._waits)
            return batch
        except (RateLimitedError, EmptyTableError) as error:
            if isinstance(error, EmptyTableError) and not self._waits:
                self._fail()
            raise
        except Exception:
            self._fail()
            raise
        except BaseException:
            self._place = before  # An interrupt: nobody got the batch. It comes again over another call.
            self.break_off()
            raise

    def _fail(self) -> None:
        """Ends the stream, whose call has ended."""
        self._over = True
        self._end_call()

    def break_off(self) -> None:
        """Ends the call. The batch that is next now comes over another one."""
        self._lost = True
        self._end_call()

    def _taken(self, budget: RetryBudget) -> tuple[TensorDict, Any]:
        """The next batch, over a new call where the one before was lost, and the place after it."""
        if self._over:
            raise StopIteration
        call = self._current(budget)
        call.grant()
        pending = self._awaited(call, budget)
        if isinstance(pending, BaseException):
            try:
                self._end_call()
                if self._over:  # Another thread closed the stream, and with it the call.
                    raise StopIteration
                self.losses += isinstance(pending, ServerUnavailableError)
                self._lost = isinstance(pending, (*MAY_PASS, *((EmptyTableError,) if self._waits else ())))
                if not isinstance(pending, self._DRAWN_ANEW):
                    raise pending
            finally:
                del pending  # Its traceback holds this frame: together they would keep the shared memory mapped.
            self._lost = True
            return self._taken(budget)
        call.take(pending)
        batch, place = pending.take(), self._after(self._place, pending)
        del pending  # With it goes a segment whose batch was copied.
        if not call.grant() and self._counted:
            call.say_taken()  # The rows count as drawn from now on, and others may wait for that.
        return batch, place

    def _current(self, budget: RetryBudget) -> BatchCall:
        """The call from which batches come: a new one where the one before was lost."""
        if self._lost or self._call is None:
            self._open(budget)
        if self._call is None:
            raise ClosedError("the stream is closed")
        return self._call

    def _awaited(self, call: BatchCall, budget: RetryBudget) -> PendingBatch | BaseException:
        """What comes next from a call, or how it ended."""
        if self._counted and self._ready.empty():
            call.say_taken()  # What this waits for may follow from it.
        pending = self._in_time(budget)
        while not isinstance(pending, BaseException):
            if isinstance(pending, _Progress):
                budget.answered()
                self._place = self._without_batch(self._place, pending.head)
                pending = self._in_time(budget)
            elif self._counted and not call.answers.active:
                pending = self._ready.get()  # What came before the end of the call is drawn again.
            else:
                break
        return pending

    def _in_time(self, budget: RetryBudget) -> PendingBatch | BaseException | _Progress:
        """What came in time; the error for what did not. This process may have stood still meanwhile."""
        try:
            return self._ready.get(timeout=budget.left)
        except queue.Empty:
            pass
        try:
            return self._ready.get(timeout=GRACE_SECONDS)
        except queue.Empty:
            return self._connection.late_error()

    @property
    def gives_at_once(self) -> bool:
        """Whether `next` waits for nothing: the batch came already, no view is to be made of it, and nobody counts that it is taken."""
        call = self._call
        usable = call is not None and not self._lost and not self._over
        return usable and call is not None and not self._counted and self._view is None and call.credit.waiting > 0

    def update_priorities(self, batch: TensorDictBase, td_error: Any) -> None:
        """Gives the rows of a batch new priorities, the absolute values of `td_error`. It does not wait for the server.

        The rows are those of the batch's ``row_id``: none of them is mistaken for another row, however late the update comes. Updates are sent
        within 2 ms and take effect in order. Those that are on their way when the connection is lost may be lost with it; `update_priorities` of the
        buffer waits until they took effect. A row of priority 0 is not drawn while others have more, so add a small number to each error.

        Args:
            batch: A batch of this table, of n rows, or a part of one.
            td_error: n numbers, positive or negative: a tensor of any device, an array or a list; or one number for all.

        Raises:
            InvalidArgumentError: one is NaN or infinite, there is another number of them, or the batch has no ``row_id``. Nothing is sent.
            ClosedError: the stream is closed.

        What the server refuses, such as priorities for a table that has none, ends the stream: the next batch raises it.
        """
        self._connection.owner.check()
        self.send_priorities(*new_priorities(batch, td_error))

    def send_priorities(self, row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """As `update_priorities`, of checked values, one for each row id."""
        call = self._call
        if self._over:
            raise ClosedError("the stream is closed")
        if call is not None:
            call.update_priorities(priority_updates(row_ids, priorities))

    @property
    def updated(self) -> Updated:
        """What became of the rows of this stream's updates, as far as the server has said: it does with each message that brings batches."""
        before, now = self._updated, Updated(0, 0) if self._call is None else self._call.updated
        return Updated(before.updated + now.updated, before.stale + now.stale)

    def close(self) -> None:
        """Ends the call, and waits for the thread that reads it. Closing twice is allowed.

        The server first hears what was said last, the batches that were taken and the updates of priorities. This takes at most half a second.
        """
        over, self._over = self._over, True
        if not over and self._connection.owner.is_here:
            self._say_last()
        self._end_call()

    def _say_last(self) -> None:
        call, reader = self._call, self._reader
        if call is not None and reader is not None and not self._lost and not self._connection.closed and self._heeds(call):
            call.say_taken()
            call.requests.put(None)
            reader.join(LAST_WORDS_SECONDS)

    def _heeds(self, call: BatchCall) -> bool:
        """Whether the server may not have heard yet what was said last. It confirms updates alone, and these with the next batches."""
        return call.has_unconfirmed_updates or (self._counted and call.credit.taken > 0)

    def _end_call(self) -> None:
        self._end()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _note(ready: Ready, head: Any) -> None:
    """Notes that a message came without a batch."""
    ready.put(_Progress(head))


def new_priorities(batch: TensorDictBase, td_error: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The row ids of a batch, and the priorities that errors make of it: see `BatchStream.update_priorities`."""
    row_ids = row_ids_of(batch)
    return row_ids, checked_priorities(_magnitudes(td_error), len(row_ids))


def _magnitudes(td_error: Any) -> Any:
    """The absolute values of numbers, where they are any."""
    if isinstance(td_error, torch.Tensor):
        return td_error.detach().abs()
    values = np.asarray(td_error)
    return np.abs(values) if values.dtype.kind in "iuf" else td_error


def _read(batches: Iterator[PendingBatch], ready: Ready, credit: BatchCredit) -> None:
    """Reads the batches of a call until it ends, and says how it ended."""
    try:
        for batch in batches:
            credit.came()
            ready.put(batch)
            del batch  # While the next one is awaited, this one is its taker's alone, and with it the memory that it lies in.
        ready.put(StopIteration())
    except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that takes the batches raises it.
        # Without its traceback, whose frames hold the queue that is to hold the error: that circle would keep the shared memory mapped.
        ready.put(error.with_traceback(None))
