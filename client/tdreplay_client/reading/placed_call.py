"""Calls whose rows a server writes straight into memory of this process."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from tdreplay.block import Layout, layout_of
from tdreplay.errors import ClosedError, CodecError
from tdreplay.framing import split
from tdreplay.priorities import Updated
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.priority_updates import priority_updates, together
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.batch_memory import BatchMemory
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["Part", "PlacedCall"]

LAST_WORDS_SECONDS = 0.5
"""How long `close` lets the server hear the updates of priorities that it did not confirm."""
Part = tuple[int, npt.NDArray[np.intp]]
"""A slot, and which rows of the batch in it are to be drawn and written, ascending."""


class PlacedCall:
    """A Sample call whose server draws rows when it is asked to, and writes them to their places in batches. One thread asks and waits.

    Attributes:
        memory: Where the batches lie.
        accepted: Whether the server writes there. Where not, the call has ended.
        layout: How a batch lies in a slot, where it does.
        asked: How many parts of batches were asked for.
        head: The fields of the last answer.
        done: How many parts are in their places.
        came: When the last answer came, as `time.monotonic` says it.

    Args:
        connection: The connection to the server.
        query: The first request. What concerns the memory is filled in here.
        memory: Where the batches lie.
        budget: How long the server may take to open it.

    Raises:
        ReplayError: the server refused the query.
    """

    shared = True

    def __init__(self, connection: Connection, query: pb.SampleRequest, memory: BatchMemory, budget: RetryBudget) -> None:
        self._connection, self.memory = connection, memory
        query.client_memory.CopyFrom(memory.offer())
        query.shared_slots = 1
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._requests.put(query)
        self.head: Any = pb.SampleResponse()
        self.asked = self.done = self._sent_updates = 0
        self.came = 0.0
        self._over = False
        try:
            self._answers = connection.stream("Sample", together(self._requests), budget)
        except BaseException:
            self._requests.put(None)  # An interrupt may leave a call behind, whose thread waits for requests.
            raise
        try:
            self._answers.opened()
            header = split(self._answers.offer(), pb.SampleResponse)[0].placed_header
            self.accepted = bool(header)
            if header:
                self.layout = self._checked(layout_of(header), query.batch_size)
        except BaseException:
            self.break_off()
            raise
        if not self.accepted:
            self.break_off()
        self._answers.budget = None  # From now on each answer may take as long as any.

    def _checked(self, found: Layout, rows: int) -> Layout:
        if found.batch_shape[0] != rows or found.size > self.memory.slot_bytes:
            raise CodecError(f"a batch of {found.batch_shape[0]} rows and {found.size} bytes was offered, not one of {rows} rows that fits a slot")
        return found

    def ask(self, parts: Iterable[Part]) -> None:
        """Asks for rows. It waits for nothing."""
        placed = [pb.PlacedRows(slot=slot, places=places.tolist()) for slot, places in parts]
        self.asked += len(placed)
        self._requests.put(pb.SampleRequest(placed=placed))

    def wait(self, parts: int) -> None:
        """Waits until so many parts of the call are in their places.

        Raises:
            ReplayError: the call failed.
        """
        while self.done < parts:
            message = next(self._answers, None)
            if message is None:
                raise self._connection.lost_error("ended a call")
            self.head, _ = split(message, pb.SampleResponse)
            if not self.done < self.head.placed <= self.asked:
                raise CodecError(f"placed ({self.head.placed}) must be above {self.done}, and at most {self.asked}")
            self.done, self.came = self.head.placed, time.monotonic()

    def send_priorities(self, row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """As `BatchStream.send_priorities`."""
        if self._over:
            raise ClosedError("the stream is closed")
        for update in priority_updates(row_ids, priorities):
            self._sent_updates += len(update.row_ids)
            self._requests.put(pb.SampleRequest(updates=[update]))

    @property
    def is_weighed(self) -> bool:
        """Whether its rows say how probable they were."""
        return bool(self.head.table_size)

    @property
    def over(self) -> bool:
        """Whether it was ended here."""
        return self._over

    @property
    def updated(self) -> Updated:
        """What became of the rows of updates, as far as the server has said with rows that it wrote."""
        return Updated(self.head.updated, self.head.stale)

    def break_off(self) -> None:
        """Ends the call. It waits for nothing."""
        self._over = True
        end_call(self._requests, self._answers)

    def close(self) -> None:
        """Ends the call. The server first hears the updates of priorities, for half a second at most."""
        over, self._over = self._over, True
        if not over and self._sent_updates > sum(self.updated):
            self._requests.put(None)
            until = time.monotonic() + LAST_WORDS_SECONDS
            while self._answers.active and time.monotonic() < until:
                self._connection.wait(LAST_WORDS_SECONDS / 50)
        self.break_off()
