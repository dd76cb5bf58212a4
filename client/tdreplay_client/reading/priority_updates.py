"""Updates of priorities, as messages."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from tdreplay.limits import MAX_HEAD_BYTES
from tdreplay.priorities import Updated
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["priority_updates", "together", "update_priorities"]

ROW_BYTES = 16
MOST_ROWS = (MAX_HEAD_BYTES - 1024) // ROW_BYTES
"""The most rows of one update: a message without a block has at most `MAX_HEAD_BYTES`."""
SPARE_ROWS = 2
"""What an update takes beside its rows, in rows."""
LINGER_SECONDS = 0.002
"""How long an update waits for others. A learner takes small batches more often than that."""
_NOTHING = object()


def priority_updates(row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> Iterator[pb.PriorityUpdate]:
    """The updates that give rows of these ids these priorities, in order, each small enough for a message of its own."""
    for start in range(0, len(row_ids), MOST_ROWS):
        part = slice(start, start + MOST_ROWS)
        yield pb.PriorityUpdate.FromString(_packed(1, row_ids[part].astype("<i8")) + _packed(2, priorities[part].astype("<f8")))


def together(requests: queue.SimpleQueue[Message | None]) -> Iterator[Message]:
    """The requests of a call, until None comes. An update of priorities waits `LINGER_SECONDS` for what follows it, and shares its message.

    A message costs more than the updates in it, and a learner that updates batch after batch sends many. The order stays.
    """
    request: Any = requests.get()
    while request is not None:
        following, until = _NOTHING, time.monotonic() + LINGER_SECONDS
        while _is_update(request):
            following = _soon(requests, until)
            if following in (_NOTHING, None) or following.placed or _rows(request) + _rows(following) > MOST_ROWS:
                break
            request.MergeFrom(following)
            following = _NOTHING
        yield request
        request = requests.get() if following is _NOTHING else following


def _soon(requests: queue.SimpleQueue[Message | None], until: float) -> Any:
    """The next request, where it comes until then."""
    try:
        return requests.get(timeout=max(0.0, until - time.monotonic()))
    except queue.Empty:
        return _NOTHING


def _is_update(request: Any) -> bool:
    """Whether a request brings updates, and asks for no batches: those are not to wait."""
    return isinstance(request, pb.SampleRequest) and len(request.updates) > 0 and not (request.credits or request.placed)


def _rows(request: pb.SampleRequest) -> int:
    """The rows of its updates, and what each update takes beside them."""
    return sum(len(update.row_ids) + SPARE_ROWS for update in request.updates)


def update_priorities(connection: Connection, table: str, row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> Updated:
    """Gives rows of a table these priorities, and waits until they have them. Each update is sent again where the connection was lost."""
    updates, answers = deque(priority_updates(row_ids, priorities) if len(row_ids) else [pb.PriorityUpdate()]), []

    def send(budget: RetryBudget) -> Updated:
        while updates:
            answers.append(connection.unary("UpdatePriorities", pb.UpdatePrioritiesRequest(table=table, update=updates[0]), budget))
            updates.popleft()
            budget.answered()
        return Updated(sum(answer.updated for answer in answers), sum(answer.stale for answer in answers))

    return connection.retried(send)


def _packed(number: int, values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> bytes:
    """A packed field of 64-bit values, as protobuf encodes it: the runtime would convert each value by itself."""
    length, size = b"", values.nbytes
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + values.tobytes()
