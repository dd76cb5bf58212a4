"""Messages <-> TensorDicts: batches put together from the blocks that come, and cut into the blocks that go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from google.protobuf.message import Message
from tensordict import TensorDict

from tdreplay.block import Block, decode, layout
from tdreplay.columns import to_tensordict
from tdreplay.errors import CodecError
from tdreplay.framing import frame, split
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE
from tdreplay.memory import Rows, as_rows
from tdreplay.schema import Columns, Schema
from tdreplay_client.shared_memory import MappedSlots

__all__ = ["assemble", "block_ranges", "encode"]


def assemble(messages: Iterator[bytes], message_type: type[Message], device: torch.device, slots: MappedSlots | None = None) -> Iterator[TensorDict]:
    """The batches that `messages` carry, or that lie in `slots`, each on `device`, in memory of its own.

    A batch of one block on the CPU is views of the message's memory, which no other batch uses; of a message with several batches each is views of
    its own part. A batch of several blocks is allocated once, and each block is copied into its place. A block in a slot is copied out of it before
    its first batch comes.

    Raises:
        CodecError: a message is not a block of the batch that it belongs to.
    """
    for message in messages:
        head, block = _decoded(message, message_type, slots)
        batch_size = (head.batch_rows, *block.batch_shape[1:])
        if head.first_row == 0 and block.rows % max(1, head.batch_rows) == 0:
            for columns in _parts(block, head.batch_rows):
                yield to_tensordict({name: column.to(device) for name, column in columns.items()}, batch_size, device)
        else:
            yield to_tensordict(_joined(head, block, messages, message_type, device), batch_size, device)


def _parts(block: Block, rows: int) -> Iterator[Columns]:
    """The batches of `rows` rows that a block holds, one after the other, as views of it."""
    count = block.rows // rows
    if count == 1:
        return iter([block.columns])
    parts = {name: column.view(count, rows, *column.shape[1:]).unbind(0) for name, column in block.columns.items()}
    return ({name: views[n] for name, views in parts.items()} for n in range(count))


def _decoded(message: bytes, message_type: type[Message], slots: MappedSlots | None = None) -> tuple[Any, Block]:
    head: Any
    head, memory = split(message, message_type)
    if slots is None:
        return head, decode(memory)
    shared = decode(slots.block(head.slot), longer=True)
    return head, Block({name: _copied(column) for name, column in shared.columns.items()}, shared.batch_shape, shared.header)


def _copied(column: torch.Tensor) -> torch.Tensor:
    copy = torch.empty_like(column)
    if column.nbytes:
        as_rows(copy)[:] = as_rows(column)
    return copy


def _joined(head: Any, block: Block, messages: Iterator[bytes], message_type: type[Message], device: torch.device) -> dict[str, torch.Tensor]:
    rows = head.batch_rows
    columns = {name: torch.empty((rows, *column.shape[1:]), dtype=column.dtype, device=device) for name, column in block.columns.items()}
    done = _place(columns, head, block, 0, rows)
    while done < rows:
        message = next(messages, None)
        if message is None:
            raise CodecError(f"the stream ended after {done} of {rows} rows of a batch")
        head, block = _decoded(message, message_type)
        done = _place(columns, head, block, done, rows)
    return columns


def _place(columns: Columns, head: Any, block: Block, done: int, rows: int) -> int:
    """Copies a block to its place, and gives the place of the next one."""
    if head.first_row != done or head.batch_rows != rows or not 0 < block.rows <= rows - done or block.columns.keys() != columns.keys():
        raise CodecError(f"a block of rows {head.first_row} to {head.first_row + block.rows} of {head.batch_rows} came, {done} of {rows} was next")
    for name, column in block.columns.items():
        place = columns[name][done : done + block.rows]
        if place.device.type == "cpu" and column.nbytes:
            as_rows(place)[:] = as_rows(column)
        else:
            place.copy_(column)
    return done + block.rows


def block_ranges(schema: Schema, rows: int) -> Iterator[tuple[int, int]]:
    """Cuts `rows` rows into blocks of about `BLOCK_BYTES`: (start, stop) of each."""
    step = min(max(1, BLOCK_BYTES // max(1, schema.row_bytes)), MAX_BATCH_SIZE)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def encode(head: Message, schema: Schema, columns: Columns, start: int, stop: int) -> bytes:
    """A message with the fields of `head`, and the rows of `columns` from start to stop as its block.

    Raises:
        MessageTooLargeError: it is above the limit.
        CodecError: the header of its block is.
    """
    place = layout(schema.fields, stop - start, schema.row_shape)
    message, memory = frame(head, place.size)
    for name, rows in place.write_header(memory).items():
        _fill(rows, columns[name][start:stop])
    return message


def _fill(rows: Rows, column: torch.Tensor) -> None:
    """Copies a column of any device and layout into its place."""
    if column.device.type == "cpu" and column.is_contiguous() and not (column.is_conj() or column.is_neg()):
        rows[:] = as_rows(column)
    else:
        rows[:] = as_rows(column.cpu().resolve_conj().resolve_neg().contiguous())
