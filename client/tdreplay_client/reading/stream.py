"""Streams: batches that a thread reads ahead."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import EmptyTableError, FailedPreconditionError, ServerUnavailableError
from tdreplay.limits import MAX_INT64
from tdreplay.tokens import check_keys, check_same, whole_of
from tdreplay_client.reading.batch_call import BatchCall
from tdreplay_client.reading.batch_credit import BatchCredit
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import GRACE_SECONDS, RetryBudget
from tdreplay_client.transport.shared_memory import Sharing
from tdreplay_client.transport.threads import start_reader

__all__ = ["BatchStream"]

JOIN_SECONDS = 5.0
VERSION = 1
"""Of the tokens of streams."""


class BatchStream(OfOneProcess, Iterator[TensorDict]):
    """Batches of a table on the training device. The next ones are on their way while one is used.

    A stream ends with `close` (or ``with``), or when nothing refers to it any more. It goes on when its server was lost and is back within the
    connection's timeout. An error is raised in place of the batch that it concerns; no batches come after it.

    Attributes:
        shared: whether batches come through memory that is shared with the server.

    Args:
        connection: the connection to the server.
        query: the first request of a Sample call.
        transfer: brings batches to the device.
        prefetch: the most batches that are on their way or wait here.
        sharing: whether shared memory is used.
        wait: whether a batch of an empty table waits for the table's first row, at most for the connection's timeout.

    Raises:
        ReplayError: the server refused the query.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a stream there"

    def __init__(self, connection: Connection, query: Any, transfer: DeviceTransfer, prefetch: int, sharing: Sharing, *, wait: bool = False) -> None:
        self._connection, self._query, self._transfer, self._prefetch, self._sharing = connection, query, transfer, prefetch, sharing
        self._place = self._beginning()
        self._over = self._lost = False
        self._waits, self.shared = wait, False
        self._end: Callable[[], object] = lambda: None
        self._reader: threading.Thread | None = None
        try:
            connection.retried(self._open)
        except EmptyTableError:
            if not wait:
                raise
            self._lost = True  # The first batch waits for the first row, and not this: whoever opens the stream may be the one who adds that row.

    # -- where it stands ----------------------------------------------------------------------------------------------------------------------

    def _beginning(self) -> Any:
        """The place of the first batch: its number."""
        return int(self._query.first_batch)

    def _query_at(self, place: Any) -> Any:
        """The first request of a call that begins at `place`."""
        self._query.first_batch = place
        return self._query

    def _after(self, place: Any, pending: PendingBatch) -> Any:
        """The place after a batch that came at `place`."""
        return place + 1

    def state_dict(self) -> dict[str, Any]:
        """A token for `load_state_dict`: the seed and the number of the next batch, as a dict that `json.dumps` takes. It costs no call.

        Raises:
            FailedPreconditionError: the stream has no seed, so its batches cannot be drawn again.
        """
        if not self._query.HasField("seed"):
            raise FailedPreconditionError("a stream without a seed has no place: its batches cannot be drawn again. Give it a seed")
        same = {"version": VERSION, "table": self._query.table, "batch_size": self._query.batch_size}
        return {**same, "seed": self._query.seed, "position": self._place}

    def load_state_dict(self, token: Mapping[str, Any]) -> None:
        """Goes on with the batch that would have come next when `state_dict` of another stream was called. It takes that one's seed.

        The batches are the same as long as the table holds the same rows.

        Raises:
            TokenError: it is no token, or one of another table or batch size. The stream goes on where it was.
        """
        entries = check_keys(token, ("version", "table", "batch_size", "seed", "position"))
        check_same(entries, {"version": VERSION, "table": self._query.table, "batch_size": self._query.batch_size})
        seed, place = whole_of(entries, "seed", 0, MAX_INT64), whole_of(entries, "position", 0, MAX_INT64)
        self.break_off()
        self._query.seed, self._place = seed, place

    # -- batches ------------------------------------------------------------------------------------------------------------------------------

    def _open(self, budget: RetryBudget) -> None:
        """Opens a call, grants the first batches, and starts to read them."""
        query = self._query_at(self._place)
        self._call = call = self._sharing.tried(lambda shared: BatchCall(self._connection, query, self._prefetch, shared, budget))
        self.shared = call.segments is not None
        self._ready: queue.SimpleQueue[PendingBatch | BaseException] = queue.SimpleQueue()
        self._end = weakref.finalize(self, end_call, call.requests, call.answers)
        self._lost = False
        call.grant()
        self._reader = start_reader(_read, call.batches(call.answers.without_deadline(), self._transfer), self._ready, call.credit)
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
        except Exception:
            self.close()
            raise
        except BaseException:
            self._place = before  # An interrupt: nobody got the batch. It comes again over another call.
            self.break_off()
            raise

    def break_off(self) -> None:
        """Ends the call. The batch that is next now comes over another one."""
        self._lost = True
        self._end_call()

    def _taken(self, budget: RetryBudget) -> tuple[TensorDict, Any]:
        """The next batch, over a new call where the one before was lost, and the place after it."""
        if self._over:
            raise StopIteration
        if self._lost:
            self._open(budget)
        self._call.grant()
        try:
            pending = self._ready.get(timeout=budget.left)
        except queue.Empty:
            pending = self._within_grace()
        if isinstance(pending, BaseException):
            try:
                self._end_call()
                if self._over:  # Another thread closed the stream, and with it the call.
                    raise StopIteration
                self._lost = isinstance(pending, (ServerUnavailableError, EmptyTableError) if self._waits else ServerUnavailableError)
                raise pending
            finally:
                del pending  # Its traceback holds this frame: together they would keep the shared memory mapped.
        self._call.credit.take()
        batch, place = pending.take(), self._after(self._place, pending)
        del pending  # With it goes a segment whose batch was copied.
        self._call.grant()
        return batch, place

    def _within_grace(self) -> PendingBatch | BaseException:
        """What came in time while this process stood still; the error for what did not."""
        try:
            return self._ready.get(timeout=GRACE_SECONDS)
        except queue.Empty:
            return self._connection.late_error()

    def close(self) -> None:
        """Ends the call, and waits for the thread that reads it. Closing twice is allowed."""
        self._over = True
        self._end_call()

    def _end_call(self) -> None:
        self._end()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _read(batches: Iterator[PendingBatch], ready: queue.SimpleQueue[PendingBatch | BaseException], credit: BatchCredit) -> None:
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
