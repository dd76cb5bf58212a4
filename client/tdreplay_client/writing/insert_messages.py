"""Rows -> messages: the blocks in which rows travel to the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from google.protobuf.message import Message
from tensordict import TensorDict

from tdreplay.block import Bytes, Layout, decode, layout
from tdreplay.columns import to_tensordict
from tdreplay.framing import frame
from tdreplay.insert_id import InsertId
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE
from tdreplay.memory import Rows, as_rows, has_rows
from tdreplay.schema import Columns, Schema
from tdreplay_client.transport.shared_memory import MappedSegments

__all__ = ["InsertMessage", "block_layout", "block_ranges", "framed", "rows_of", "rows_per_block"]


@dataclass(frozen=True)
class InsertMessage:
    """A message, and the block that it brings, to be filled before it is sent.

    Attributes:
        encoded: what is sent.
        memory: the block: a part of the message, or of memory that is shared with the server.
        places: the fields' places in the block.
        insert_id: of the block.
        segment: of the shared memory, where the block lies there.
        segments: that memory.
        units: of what a `Writer` was given, that are in it.
    """

    encoded: bytes
    memory: Bytes
    places: Mapping[str, Rows]
    insert_id: InsertId
    segment: int = 0
    segments: MappedSegments | None = None
    units: int = 0

    def fill(self, columns: Columns, start: int, stop: int) -> None:
        """Copies the rows of `columns` from start to stop in: columns of any device and layout."""
        for name, place in self.places.items():
            column = columns[name]
            place[:] = rows_of(column if len(place) == column.shape[0] else column[start:stop])

    @property
    def layout(self) -> Layout:
        """What the block holds, and where."""
        return decode(self.memory).header

    def rows(self) -> TensorDict:
        """A copy of the rows."""
        block = decode(self.memory)
        columns = {name: column.clone() for name, column in block.columns.items()}
        return to_tensordict(columns, block.batch_shape, torch.device("cpu"), block.header.dim_names)


def rows_of(column: torch.Tensor) -> Rows:
    """A column of any device and layout, whose rows have at least one byte, as rows of bytes: a view where it can be."""
    return as_rows(column if has_rows(column) else column.cpu().resolve_conj().resolve_neg().contiguous())


def framed(head: Message, block: Layout, insert_id: InsertId) -> InsertMessage:
    """A message with the fields of `head`, the insert id among them, and room for a block of that layout.

    Raises:
        MessageTooLargeError: it is above the limit.
    """
    message, memory = frame(head, block.size)
    return InsertMessage(message, memory, block.write_header(memory), insert_id)


def block_layout(schema: Schema, rows: int) -> Layout:
    """The layout of a block of `rows` rows.

    Raises:
        CodecError: its header is above the limit.
    """
    return layout(schema.fields, rows, schema.row_shape, schema.dim_names)


def rows_per_block(schema: Schema, block_bytes: int = BLOCK_BYTES) -> int:
    """How many rows go into a block of about `block_bytes`."""
    return min(max(1, block_bytes // max(1, schema.row_bytes)), MAX_BATCH_SIZE)


def block_ranges(schema: Schema, rows: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Cuts `rows` rows into blocks of about `block_bytes`: (start, stop) of each."""
    step = rows_per_block(schema, block_bytes)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
