"""Calls on which blocks go out and acknowledgements come back."""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from tdreplay.limits import BLOCK_BYTES, LEAST_SHARED_BYTES, SHARED_BLOCK_BYTES
from tdreplay.mapped_segments import MappedSegments
from tdreplay.schema import Schema
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.answers import end_call
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget
from tdreplay_client.transport.shared_memory import Sharing, mapped
from tdreplay_client.writing.insert_messages import InsertMessage, InsertMessages, block_layout, rows_per_block

__all__ = ["SEGMENTS", "WAKE_UP", "InsertCall", "Outgoing", "Requests", "largest_block", "open_inserts"]

Requests: TypeAlias = "queue.SimpleQueue[Any]"
Outgoing: TypeAlias = Callable[[Requests], Iterator[Any]]
"""Makes the messages of a call out of what is put into its queue; None ends it. Runs in a thread of gRPC."""

WAKE_UP: Any = object()
"""What is put there to say that there is something to be sent."""

SEGMENTS = 4
"""The segments of shared memory that a call asks for, and the most blocks of one insert that are on their way."""


class InsertCall:
    """An AddBatch call. Blocks are acknowledged in the order in which they were sent; nothing here waits for that.

    Attributes:
        answers: the acknowledgements.
        messages: makes the messages of this call.
        segments: the number of blocks that may lie in shared memory at once; 0: there is none.
        block_bytes: the size that the blocks of a large batch aim at.

    Args:
        connection: the connection to the server.
        table: the table's name.
        standing: whether the server may refuse the call in favour of other streams.
        segment_bytes: the size of the largest block, where shared memory is asked for; else 0.
        budget: how long the first answer may take; None: the connection's timeout.
        outgoing: makes its messages; None: they are what is sent.

    Raises:
        ReplayError: the server refuses the call.
        OSError: it offers shared memory that cannot be had from here.
    """

    def __init__(
        self, connection: Connection, table: str, *, standing: bool, segment_bytes: int, budget: RetryBudget | None, outgoing: Outgoing | None = None
    ) -> None:
        self._requests: Requests = queue.SimpleQueue()
        try:
            self.answers = connection.stream("AddBatch", (outgoing or _as_put)(self._requests), budget)
        except BaseException:
            self._requests.put(None)  # An interrupt may leave a call behind, whose thread waits for requests.
            raise
        self._close = weakref.finalize(self, end_call, self._requests, self.answers)
        wait = connection.server_wait
        share = pb.AddBatchRequest(table=table, standing=standing, shared_slots=SEGMENTS, slot_bytes=segment_bytes, wait_seconds=wait)
        segments = self._shared(share) if segment_bytes else None
        self.messages = InsertMessages(table, standing=standing, segments=segments, wait_seconds=wait)
        self.segments = self.messages.segments
        self.block_bytes = SHARED_BLOCK_BYTES if self.segments else BLOCK_BYTES

    def _shared(self, request: pb.AddBatchRequest) -> MappedSegments | None:
        self._requests.put(request)
        try:
            return mapped(next(self.answers).shared_memory, self.answers)
        except BaseException:
            self.close()
            raise

    def send(self, message: InsertMessage) -> None:
        """Sends a block. It must not be written any more."""
        self._requests.put(message.encoded)

    def wake(self) -> None:
        """Says that there is something to be sent."""
        self._requests.put(WAKE_UP)

    def is_behind(self, requests: Requests) -> bool:
        """Whether that is its queue."""
        return self._requests is requests

    def close(self) -> None:
        """Ends the call. Closing twice is allowed."""
        self._close()

    def retire(self) -> None:
        """Lets the call end by itself, within a moment. This thread does not go into gRPC, which does not bear an interrupt while it ends a call."""
        self._requests.put(None)
        self.answers.end_at(time.monotonic())


def open_inserts(
    connection: Connection,
    table: str,
    sharing: Sharing,
    schema: Schema,
    rows: int,
    budget: RetryBudget,
    *,
    standing: bool = False,
    most_rows: int = 0,
    outgoing: Outgoing | None = None,
) -> InsertCall:
    """A call for blocks of up to `rows` rows of `schema`. It uses shared memory where that can be had and the blocks are large enough for it.

    Its segments then also have room for blocks of up to `most_rows` rows.
    """
    opened = partial(InsertCall, connection, table, standing=standing, budget=budget, outgoing=outgoing)
    if largest_block(schema, rows) < LEAST_SHARED_BYTES:
        return opened(segment_bytes=0)
    size = largest_block(schema, max(rows, most_rows))
    return sharing.tried(lambda shared: opened(segment_bytes=size if shared else 0))


def _as_put(requests: Requests) -> Iterator[Any]:
    return iter(requests.get, None)


def largest_block(schema: Schema, rows: int) -> int:
    """The size in bytes of the largest block in which so many rows go through shared memory, with priorities."""
    return block_layout(schema, min(rows, rows_per_block(schema, SHARED_BLOCK_BYTES)), has_priorities=True).size
