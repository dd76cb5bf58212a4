"""Rows -> messages: the blocks in which rows travel to the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from google.protobuf.message import Message
from tensordict import TensorDict

from tdreplay.block import Bytes, Layout, decode, layout
from tdreplay.columns import to_tensordict
from tdreplay.framing import frame
from tdreplay.insert_id import InsertId
from tdreplay.limits import BLOCK_BYTES, LEAST_SHARED_BYTES, MAX_BATCH_SIZE
from tdreplay.mapped_segments import MappedSegments
from tdreplay.memory import Rows, rows_of
from tdreplay.schema import Columns, Schema
from tdreplay.system_fields import PRIORITY
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["InsertMessage", "InsertMessages", "block_layout", "framed", "rows_per_block"]


@dataclass(frozen=True)
class InsertMessage:
    """A message, and the block that it brings, to be filled before it is sent.

    Attributes:
        encoded: the bytes that are sent.
        memory: the block: a part of the message, or of memory that is shared with the server.
        places: the memory of each field in the block.
        insert_id: the name of the block.
        rows: the number of rows in it.
        segment: the number of the segment in which the block lies.
        segments: the shared memory of that segment; None where the block lies in the message.
        units: the complete units of a writer in the block; see `FlushPolicy`.
        has_priorities: whether the block has the priorities of its rows, as the field ``priority``.
    """

    encoded: bytes
    memory: Bytes
    places: Mapping[str, Rows]
    insert_id: InsertId
    rows: int
    segment: int = 0
    segments: MappedSegments | None = None
    units: int = 0
    has_priorities: bool = False

    def fill(self, columns: Columns, start: int, stop: int) -> None:
        """Copies the rows of `columns` from start to stop in: columns of any device and layout."""
        for name, place in self.places.items():
            column = columns[name]
            place[:] = rows_of(column if len(place) == column.shape[0] else column[start:stop])

    def copied(self) -> TensorDict:
        """A copy of the rows."""
        block = decode(self.memory)
        columns = {name: column.clone() for name, column in block.columns.items()}
        return to_tensordict(columns, block.batch_shape, torch.device("cpu"), block.header.dim_names)


class InsertMessages:
    """Makes the messages of one AddBatch call.

    Args:
        table: the table's name.
        standing: whether the server may refuse the call in favour of other streams.
        segments: the memory that is shared with the server, where there is any.
        wait_seconds: how long the server may wait for a rate limiter with each block; None: as long as it waits by itself.
    """

    def __init__(self, table: str, *, standing: bool = False, segments: MappedSegments | None = None, wait_seconds: float | None = None) -> None:
        self._table, self._standing, self._segments, self._wait_seconds = table, standing, segments, wait_seconds
        self.segments = 0 if segments is None else segments.count
        self._free = list(range(self.segments))

    def new(self, block: Layout, insert_id: InsertId, *, has_priorities: bool = False) -> InsertMessage:
        """A message with room for a block of that layout, in shared memory where there is a free segment for it."""
        # Whether the message will be the first of its call, which says how long the server may wait, is not known.
        head = pb.AddBatchRequest(
            table=self._table,
            standing=self._standing,
            writer_id=insert_id.writer_id,
            sequence=insert_id.sequence,
            wait_seconds=self._wait_seconds,
            has_priorities=has_priorities,
        )
        if self._segments is None or not self._free or not LEAST_SHARED_BYTES <= block.size <= self._segments.segment_bytes:
            return replace(framed(head, block, insert_id), has_priorities=has_priorities)
        head.slot = self._free.pop()
        memory = self._segments.block(head.slot)[: block.size]
        places = block.write_header(memory)
        return InsertMessage(
            head.SerializeToString(), memory, places, insert_id, block.batch_shape[0], head.slot, self._segments, has_priorities=has_priorities
        )

    def carries(self, message: InsertMessage) -> bool:
        """Whether a message can be sent over this call as it is: its block does not lie in another call's memory."""
        return message.segments is None or message.segments is self._segments

    def adopt(self, message: InsertMessage) -> InsertMessage:
        """A message of any call, as one that can be sent over this call. Its block is copied where it lies in another call's memory."""
        if self.carries(message):
            return message
        adopted = self.new(decode(message.memory).header, message.insert_id, has_priorities=message.has_priorities)
        adopted.memory[:] = message.memory
        return replace(adopted, units=message.units)

    def release(self, message: InsertMessage) -> None:
        """Gives back the segment of a message whose rows were acknowledged, or that was never sent."""
        if message.segments is not None and message.segments is self._segments:
            self._free.append(message.segment)


def framed(head: Message, block: Layout, insert_id: InsertId) -> InsertMessage:
    """A message with the fields of `head`, the insert id among them, and room for a block of that layout.

    Raises:
        MessageTooLargeError: it is above the limit.
    """
    message, memory = frame(head, block.size)
    return InsertMessage(message, memory, block.write_header(memory), insert_id, block.batch_shape[0])


def block_layout(schema: Schema, rows: int, *, has_priorities: bool = False) -> Layout:
    """The layout of a block of `rows` rows, with their priorities or without.

    Raises:
        CodecError: its header is above the limit.
    """
    return layout((*schema.fields, PRIORITY) if has_priorities else schema.fields, rows, schema.row_shape, schema.dim_names)


def rows_per_block(schema: Schema, block_bytes: int = BLOCK_BYTES) -> int:
    """How many rows go into a block of about `block_bytes`."""
    return min(max(1, block_bytes // max(1, schema.row_bytes)), MAX_BATCH_SIZE)
