"""Updates of priorities, as messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tdreplay.limits import MAX_HEAD_BYTES
from tdreplay.priorities import Updated
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.connection import Connection
from tdreplay_client.transport.retry_budget import RetryBudget

__all__ = ["priority_updates", "update_priorities"]

ROW_BYTES = 16
MOST_ROWS = (MAX_HEAD_BYTES - 1024) // ROW_BYTES
"""The most rows of one update: a message without a block has at most `MAX_HEAD_BYTES`."""
SPARE_ROWS = 2
"""What an update takes beside its rows, in rows."""


def priority_updates(row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> Iterator[pb.PriorityUpdate]:
    """The updates that give rows of these ids these priorities, in order, each small enough for a message of its own."""
    for start in range(0, len(row_ids), MOST_ROWS):
        part = slice(start, start + MOST_ROWS)
        yield pb.PriorityUpdate.FromString(_packed(1, row_ids[part].astype("<i8")) + _packed(2, priorities[part].astype("<f8")))


def messages_of(updates: Sequence[pb.PriorityUpdate]) -> list[list[pb.PriorityUpdate]]:
    """The updates of each message, in order, at least one. As many go into a message as it may hold."""
    messages: list[list[pb.PriorityUpdate]] = [[]]
    rows = 0
    for update in updates:
        size = len(update.row_ids) + SPARE_ROWS
        if rows + size > MOST_ROWS and messages[-1]:
            messages.append([])
            rows = 0
        messages[-1].append(update)
        rows += size
    return messages


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
