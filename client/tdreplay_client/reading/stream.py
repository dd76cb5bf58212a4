"""Calls that bring batches on credit, and the stream that a thread of its own reads ahead."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from google.protobuf.message import Message
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.copying import OfOneProcess
from tdreplay.errors import CancelledError, DeadlineError, EmptyTableError, InternalError, ReplayError, ServerUnavailableError, StreamLimitError
from tdreplay.framing import split
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.assembly import assemble
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.transport.channel import Connection, end_call, start_reader
from tdreplay_client.transport.retry_budget import GRACE_SECONDS, RetryBudget, jittered
from tdreplay_client.transport.shared_memory import MappedSegments, Sharing, mapped

__all__ = ["BatchCall", "BatchStream", "SingleBatches"]

Draw = tuple[int, int] | None
"""What a random batch is drawn by: a seed, and the number of the batch among those of the seed; None: by chance."""

RETRY_SECONDS = 5.0
JOIN_SECONDS = 5.0
SPARE_SEGMENTS = 2
"""Of shared memory, beside those for the batches on their way: for the one that is used, and the one that was."""


class BatchCall:
    """A Sample or Epoch call: batches come as they are granted.

    Attributes:
        answers: the server's messages.
        segments: the memory that is shared with the server, where there is any.

    Args:
        connection: to the server.
        query: its first request; what concerns the flow is filled in here.
        window: how many batches may be granted at any time.
        shared: whether the server's shared memory is asked for.
        budget: how long the server may take to open it.

    Raises:
        ReplayError: the server refused the query.
        OSError: it offered shared memory that cannot be had from here.
    """

    def __init__(self, connection: Connection, query: Any, window: int, shared: bool, budget: RetryBudget) -> None:
        call, self._response = _CALLS[type(query)]
        self._request = type(query)
        self._sizes = range(query.batch_size if call == "Sample" else 1, query.batch_size + 1)  # The last batch of an epoch may have fewer rows.
        query.batches_per_message = max(1, window // 2)
        query.shared_slots = window + SPARE_SEGMENTS if shared else 0
        self.requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.requests.put(query)
        try:
            self.answers = connection.stream(call, iter(self.requests.get, None), budget)
        except BaseException:
            self.requests.put(None)  # An interrupt may leave a call behind, whose thread waits for requests.
            raise
        try:
            self.answers.opened()
            self.segments = self._accepted(min(2, window)) if shared else None
        except BaseException:
            end_call(self.requests, self.answers)
            raise

    def _accepted(self, reserve: int) -> MappedSegments | None:
        """The shared memory that the server offers, mapped; None where it offers none."""
        head: Any = split(next(self.answers), self._response)[0]
        return mapped(head.shared_memory, self.answers, reserve)

    def grant(self, batches: int) -> None:
        """Grants so many more batches, and gives back the segments that are not needed any more."""
        self.requests.put(self._request(credits=batches, released_slots=[] if self.segments is None else self.segments.returned()))

    def batches(self, messages: Iterator[bytes], transfer: DeviceTransfer) -> Iterator[PendingBatch]:
        """The batches that `messages` of this call bring."""
        return assemble(messages, self._response, transfer, self._sizes, self.segments)


_CALLS: dict[Any, tuple[str, type[Message]]] = {pb.SampleRequest: ("Sample", pb.SampleResponse), pb.EpochRequest: ("Epoch", pb.EpochResponse)}


class BatchStream(OfOneProcess, Iterator[TensorDict]):
    """Batches of a table, the next ones already on their way, and on the device.

    It ends with the call's last batch, with `close` (or ``with``), or when nothing refers to it any more. A stream of random batches goes on after
    its server was lost, where that is back within the connection's timeout. An epoch does not, and raises `ServerUnavailableError`: where it stood is
    known to that server process alone. What went wrong on the way is raised where the batch that it hit would have come; after that, and after the
    end, there are no more batches.

    Attributes:
        shared: whether batches come through memory that is shared with the server.

    Args:
        connection: to the server.
        query: the first request of a Sample or Epoch call.
        transfer: where batches go.
        prefetch: how many batches may be on their way, or wait here, at any time.
        sharing: whether shared memory is used.
        wait: whether a batch of an empty table waits for the table's first row, for as long as the connection's timeout.

    Raises:
        ReplayError: the server refused the query.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a stream there"

    def __init__(self, connection: Connection, query: Any, transfer: DeviceTransfer, prefetch: int, sharing: Sharing, *, wait: bool = False) -> None:
        self._connection, self._query, self._transfer, self._prefetch, self._sharing = connection, query, transfer, prefetch, sharing
        self._goes_on = isinstance(query, pb.SampleRequest)
        self._over = self._lost = self._interrupted = False
        self._waits, self.shared = wait, False
        self._end: Callable[[], object] = lambda: None
        self._reader: threading.Thread | None = None
        try:
            connection.repeated(self._open)
        except EmptyTableError:
            if not wait:
                raise
            self._lost = True  # Who asks for the first batch waits for the first row, and not who opens the stream: it may be the one who adds it.

    def _open(self, budget: RetryBudget) -> None:
        """Opens a call, grants the first batches, and starts to read them."""
        self._call = call = self._sharing.tried(lambda shared: BatchCall(self._connection, self._query, self._prefetch, shared, budget))
        self.shared = call.segments is not None
        self._window = self._prefetch if call.segments is None else min(self._prefetch, call.segments.count)
        # Granting in groups keeps the cost of a credit off most batches, and lets small batches share a message.
        self._group = max(1, self._window // 2)
        self._due = 0  # Batches that were granted, and not taken yet.
        self._ready: queue.SimpleQueue[PendingBatch | BaseException] = queue.SimpleQueue()
        self._end = weakref.finalize(self, end_call, call.requests, call.answers)
        self._lost = False
        self._grant()
        self._reader = start_reader(_read, call.batches(call.answers.unhurried(), self._transfer), self._ready, self._window)
        if self._over:  # Another thread closed the stream meanwhile, and did not see this call.
            self._end_call()

    def _grant(self) -> None:
        """Grants what the window has room for, and there are segments for. At least one batch is always due: not all segments are lent."""
        room = self._window - self._due
        if self._call.segments is not None:
            # A batch that just came may count twice here, as a segment and as one that is on its way: then the next call grants it.
            on_their_way = max(0, self._due - self._ready.qsize())
            room = min(room, self._call.segments.count - self._call.segments.unreturned - on_their_way)
        if room >= self._group or (room > 0 and not self._due):
            self._due += room
            self._call.grant(room)

    def __next__(self) -> TensorDict:
        self._connection.owner.check()
        if self._interrupted:
            self._interrupted = False
            raise CancelledError("the epoch was interrupted, and a batch of it may be missing: begin another one")
        if self._over:
            raise StopIteration
        try:
            if self._goes_on:
                return self._connection.repeated(self._taken, for_rows=self._waits)
            return self._taken(RetryBudget(self._connection.timeout))
        except Exception:
            self.close()
            raise
        except BaseException:
            self._break_off()
            raise

    def _break_off(self) -> None:
        """After an interrupt: random batches go on over another call; an epoch, of which a batch may be missing, says so when it is asked again."""
        if self._goes_on:
            self._lost = True
            self._end_call()
        else:
            self._interrupted = not self._over
            self.close()

    def _taken(self, budget: RetryBudget) -> TensorDict:
        """The next batch, over a new call where the one before was lost."""
        if self._over:
            raise StopIteration
        if self._lost:
            self._open(budget)
        self._grant()
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
        self._due -= 1
        if self._goes_on:
            self._query.first_batch += 1  # Where the stream goes on over another call.
        batch = pending.take()
        del pending  # With it goes a segment whose batch was copied.
        self._grant()
        return batch

    def _within_grace(self) -> PendingBatch | BaseException:
        """What came in time while this process stood still; the error for what did not."""
        try:
            return self._ready.get(timeout=GRACE_SECONDS)
        except queue.Empty:
            return self._connection.late()

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


def _read(batches: Iterator[PendingBatch], ready: queue.SimpleQueue[PendingBatch | BaseException], window: int) -> None:
    """Reads batches until the call ends, and says how it ended. So many batches may wait: more were not granted."""
    try:
        for batch in batches:
            if ready.qsize() >= window:
                raise InternalError("the server sent more batches than it was granted")
            ready.put(batch)
            del batch  # While the next one is awaited, this one is its taker's alone, and with it the memory that it lies in.
        ready.put(StopIteration())
    except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that takes the batches raises it.
        # Without its traceback, whose frames hold the queue that is to hold the error: that circle would keep the shared memory mapped.
        ready.put(error.with_traceback(None))


class SingleBatches:
    """Random batches one at a time, each drawn when it is asked for, over a Sample call that is held open: half as long as a call for each.

    Args:
        connection: to the server.
        table: the table's name.
        transfer: where batches go.
        sharing: whether shared memory is used.
    """

    def __init__(self, connection: Connection, table: str, transfer: DeviceTransfer, sharing: Sharing) -> None:
        self._connection, self._table, self._transfer, self._sharing = connection, table, transfer, sharing
        self._lock = threading.Lock()
        self._asked_for = 0
        self._not_before = 0.0
        self._batches: Iterator[PendingBatch] | None = None
        self._call: BatchCall | None = None
        self._end: Any = None
        self._next: Draw = None  # Of the batches, the one that the call brings next.

    def take(self, batch_size: int, draw: Draw, budget: RetryBudget) -> TensorDict | None:
        """A batch; None where it takes a call of its own: the first one of its size, or when another thread uses the call, or it failed.

        `draw`: the seed and the number of the batch, where it has them. The call goes on with the next number; another one takes another call.

        Raises:
            DeadlineError: the server does not answer.
        """
        self._connection.check_open()
        if time.monotonic() < self._not_before or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._taken(batch_size, draw, budget)
        except DeadlineError:
            self.close()
            raise
        except ReplayError as error:  # A call of its own will say what is wrong; the table may be another one by now.
            self.close()
            if isinstance(error, StreamLimitError):
                self._not_before = time.monotonic() + jittered(RETRY_SECONDS)
            return None
        except BaseException:
            self.close()
            raise
        finally:
            self._lock.release()

    def _taken(self, batch_size: int, draw: Draw, budget: RetryBudget) -> TensorDict | None:
        if batch_size != self._asked_for:
            self.close()
            self._asked_for = batch_size
            return None
        if self._call is None or not self._call.answers.active or draw != self._next:
            self.close()
            self._open(batch_size, draw, budget)
        if self._call is None or self._batches is None:
            return None
        self._call.answers.budget = budget
        self._call.grant(1)
        self._next = None if draw is None else (draw[0], draw[1] + 1)
        pending = next(self._batches, None)
        return None if pending is None else pending.take()

    def _open(self, batch_size: int, draw: Draw, budget: RetryBudget) -> None:
        numbers: Any = {} if draw is None else {"seed": draw[0], "first_batch": draw[1]}
        query = pb.SampleRequest(table=self._table, batch_size=batch_size, standing=True, **numbers)
        self._call = self._sharing.tried(lambda shared: BatchCall(self._connection, query, 1, shared, budget))
        self._batches = self._call.batches(self._call.answers, self._transfer)
        self._end = weakref.finalize(self, end_call, self._call.requests, self._call.answers)

    def close(self) -> None:
        """Ends the call that is held open. Closing twice is allowed."""
        if self._end is not None:
            self._end()
        self._call = self._batches = self._end = None
