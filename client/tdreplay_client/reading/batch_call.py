"""Calls that bring batches on credit."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from tdreplay.framing import split
from tdreplay.mapped_segments import MappedSegments
from tdreplay.priorities import Updated
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.reading.assembly import assemble
from tdreplay_client.reading.batch_credit import BatchCredit
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.reading.priority_updates import together
from tdreplay_client.reading.segment_loans import SegmentLoans
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.shared_memory import mapped

__all__ = ["BatchCall"]

SPARE_SEGMENTS = 2
"""Segments beside those for the batches on their way: for the batch that is used, and the one that was."""


class BatchCall:
    """A Sample or Epoch call: batches come as they are granted.

    Attributes:
        answers: the server's messages.
        segments: the memory that is shared with the server, where there is any.
        credit: what was granted, and what came.
        updated: what became of the updates of priorities, as far as the server said with the batches that were taken.

    Args:
        connection: the connection to the server.
        query: its first request. What concerns the flow of batches is filled in here.
        window: the most batches that may be granted at any time.
        shared: whether the server's shared memory is asked for.
        budget: how long the server may take to open it.
        named: whether each batch is named, and none is granted.

    Raises:
        ReplayError: the server refused the query.
        OSError: it offered shared memory that cannot be had from here.
    """

    def __init__(self, connection: Connection, query: Any, window: int, shared: bool, budget: RetryBudget, *, named: bool = False) -> None:
        call, self._response = _CALLS[type(query)]
        self._request = type(query)
        self._says_taken = call == "Sample" and query.says_taken
        self._sent_updates, self.updated = 0, Updated(0, 0)
        fixed = call == "Sample" and not named  # A batch of an epoch may have fewer rows.
        self._sizes = range(query.batch_size if fixed else 1, query.batch_size + 1)
        query.batches_per_message = max(1, window // 2)
        query.shared_slots = window + SPARE_SEGMENTS if shared else 0
        self.requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.requests.put(query)
        try:
            self.answers = connection.stream(call, together(self.requests), budget)
        except BaseException:
            self.requests.put(None)  # An interrupt may leave a call behind, whose thread waits for requests.
            raise
        try:
            self.answers.opened()
            self.segments = self._accepted() if shared else None
        except BaseException:
            end_call(self.requests, self.answers)
            raise
        self.credit = BatchCredit(window, 0 if self.segments is None else self.segments.count, reserve=min(2, window))

    def _accepted(self) -> MappedSegments | None:
        """The shared memory that the server offers, mapped; None where it offers none."""
        head: Any = split(self.answers.offer(), self._response)[0]
        return mapped(head.shared_memory, self.answers)

    def grant(self) -> int:
        """Grants what there is room for, and gives back the segments that are not needed any more. The number of batches that it granted."""
        batches = self.credit.grant()
        if batches:
            said = {"taken": self.credit.say_taken()} if self._says_taken else {}
            self.requests.put(self._request(credits=batches, released_slots=self.credit.returned(), **said))
        return batches

    def name(self, batch: pb.NextBatch) -> None:
        """Asks for one batch, where none is due, in place of granting it. It waits for nothing."""
        self.credit.grant()
        self.requests.put(pb.SampleRequest(next=[batch], released_slots=self.credit.returned()))

    def take(self, pending: PendingBatch) -> None:
        """Notes that the user takes a batch, and what its message says of updates."""
        self.credit.take()
        if self._sent_updates:
            self.updated = Updated(pending.head.updated, pending.head.stale)

    def say_taken(self) -> None:
        """Says which batches the user took, where that was not said yet."""
        if self._says_taken and self.credit.unsaid:
            self.requests.put(pb.SampleRequest(taken=self.credit.say_taken()))

    def update_priorities(self, updates: Iterable[pb.PriorityUpdate]) -> None:
        """Sends updates of priorities. It waits for nothing."""
        for update in updates:
            self._sent_updates += len(update.row_ids)
            self.requests.put(pb.SampleRequest(updates=[update]))

    @property
    def has_unconfirmed_updates(self) -> bool:
        """Whether the server did not say yet what became of some updates."""
        return self._sent_updates > sum(self.updated)

    def batches(self, messages: Iterator[bytes], transfer: DeviceTransfer, without_batch: Callable[[Any], object] = bool) -> Iterator[PendingBatch]:
        """The batches that `messages` of this call bring. `without_batch`: as in `assemble`."""
        loans = None if self.segments is None else SegmentLoans(self.segments, self.credit)
        return assemble(messages, self._response, transfer, self._sizes, loans, without_batch)


_CALLS: dict[Any, tuple[str, type[Message]]] = {pb.SampleRequest: ("Sample", pb.SampleResponse), pb.EpochRequest: ("Epoch", pb.EpochResponse)}
