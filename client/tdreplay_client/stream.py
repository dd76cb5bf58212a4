"""A stream of batches, read ahead on credit by a thread of its own."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from google.protobuf.message import Message
from tensordict import TensorDict
from typing_extensions import Self

from tdreplay.framing import split
from tdreplay_client.batches import assemble
from tdreplay_client.channel import Answers, Connection
from tdreplay_client.shared_memory import MappedSlots

__all__ = ["BatchStream", "end_call"]

JOIN_SECONDS = 5.0


class BatchStream(Iterator[TensorDict]):
    """Batches of a table, the next ones already on their way, and on the device.

    It ends with the call's last batch, with `close` (or ``with``), or when nothing refers to it any more. What went wrong on the way is raised where
    the batch that it hit would have come; after that, and after the end, there are no more batches.

    Attributes:
        shared: whether batches come through memory that is shared with the server.

    Args:
        connection: to the server.
        call: Sample or Epoch.
        query: its first request; what concerns the flow is filled in here.
        response_type: of its answers.
        device: where batches go.
        prefetch: how many batches may be on their way, or wait here, at any time.
        shared: whether the server's shared memory is asked for.

    Raises:
        ReplayError: the server refused the query.
        OSError: it offered shared memory that cannot be had from here.
    """

    def __init__(
        self, connection: Connection, call: str, query: Any, response_type: type[Message], device: torch.device, prefetch: int, shared: bool
    ) -> None:
        self._connection = connection
        self._taken, self._over = 0, False
        # Granting in groups keeps the cost of a credit off most batches, and lets small batches share a message.
        query.batches_per_message = max(1, prefetch // 2)
        query.shared_slots = prefetch if shared else 0
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._requests.put(query)
        self._answers = connection.stream(call, iter(self._requests.get, None))
        try:
            self._answers.opened()
            slots = self._accepted(response_type) if shared else None
        except BaseException:
            end_call(self._requests, self._answers, None)
            raise
        self.shared = slots is not None
        window = prefetch if slots is None else min(prefetch, slots.slots)
        self._group = max(1, window // 2)
        self._grant = type(query)(credits=self._group)
        self._requests.put(type(query)(credits=window))
        self._ready: queue.SimpleQueue[TensorDict | BaseException] = queue.SimpleQueue()
        work = (assemble(self._answers.patiently(), response_type, device, slots), self._ready)
        reader = threading.Thread(target=_read, args=work, name="tdreplay-reader", daemon=True)
        reader.start()
        self._close = weakref.finalize(self, end_call, self._requests, self._answers, reader)

    def _accepted(self, response_type: type[Message]) -> MappedSlots | None:
        """The shared memory that the server offers, mapped; None where it offers none."""
        head: Any = split(next(self._answers), response_type)[0]
        return MappedSlots(head.shared_memory) if head.shared_memory.path else None

    def __next__(self) -> TensorDict:
        if self._over:
            raise StopIteration
        try:
            batch = self._ready.get(timeout=self._connection.timeout)
        except queue.Empty:
            batch = self._connection.late()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self._taken += 1
        if self._taken % self._group == 0:
            self._requests.put(self._grant)
        return batch

    def close(self) -> None:
        """Ends the call. Closing twice is allowed."""
        self._over = True
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def end_call(requests: queue.SimpleQueue[Any], answers: Answers, reader: threading.Thread | None) -> None:
    """Ends a call, and waits for the thread that reads its answers: one that is still inside gRPC when the interpreter exits would abort it."""
    requests.put(None)
    answers.close()
    if reader is not None and reader is not threading.current_thread():
        reader.join(JOIN_SECONDS)


def _read(batches: Iterator[TensorDict], ready: queue.SimpleQueue[TensorDict | BaseException]) -> None:
    """Reads batches until the call ends, and says how it ended."""
    try:
        for batch in batches:
            ready.put(batch)
        ready.put(StopIteration())
    except BaseException as error:  # noqa: BLE001 - whatever it is, the thread that takes the batches raises it.
        # Without its traceback, whose frames hold the queue that is to hold the error: that circle would keep the shared memory mapped.
        ready.put(error.with_traceback(None))
