"""Messages -> batches, put together from blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from google.protobuf.message import Message

from tdreplay.block import Block, decode
from tdreplay.errors import CodecError, ResourceExhaustedError
from tdreplay.framing import split
from tdreplay.memory import copy_rows
from tdreplay.progress import Progress
from tdreplay.schema import Columns
from tdreplay.system_fields import MIN_PROBABILITY, TABLE_SIZE
from tdreplay_client.reading.device_transfer import DeviceTransfer, PendingBatch
from tdreplay_client.reading.segment_loans import SegmentLoans
from tdreplay_client.transport.answers import Answers

__all__ = ["assemble", "only_batch"]


def assemble(
    messages: Iterator[bytes],
    message_type: type[Message],
    transfer: DeviceTransfer,
    sizes: range,
    loans: SegmentLoans | None = None,
    without_batch: Callable[[Any], object] = bool,
    progress: Progress | None = None,
) -> Iterator[PendingBatch]:
    """The batches of `messages`, whose blocks are in the messages or in segments of `loans`, on their way to the device of `transfer`.

    A batch of one block is a view of the message's memory, or of a segment's; no other batch uses that memory. Where a block has several batches,
    each is a view of its own rows of the block. A batch of several blocks is allocated once, and each block is copied into its place. What a message
    says of the draw of its batches becomes fields of these.

    Args:
        messages: the answers of a call.
        message_type: the type of the messages.
        transfer: brings batches to the device.
        sizes: the numbers of rows that a batch may have, by what was asked for.
        loans: the memory that is shared with the server, where there is any.
        without_batch: told of the fields of each message that brings none, and only says how far an epoch is.
        progress: told of the rows of a batch of several blocks, with each block.

    Raises:
        CodecError: a message is not a block of the batch that it belongs to.
        ResourceExhaustedError: there is no memory for a batch.
    """
    for message in messages:
        head, block = _decoded(message, message_type, loans)
        if block is None:
            without_batch(head)
            continue
        _check_size(head, sizes)
        columns, batch_size, names = block.columns, (head.batch_rows, *block.batch_shape[1:]), block.header.dim_names
        lent = loans if loans is not None and transfer.on_host and head.HasField("slot") else None
        if head.first_row == 0 and block.rows and block.rows % head.batch_rows == 0:
            count = block.rows // head.batch_rows
            parts = _parts(columns, count, head.batch_rows, _drawn(head, count))
            segment = 0 if lent is None else head.slot
            for number, part in enumerate(parts):
                yield replace(transfer.bring(part, batch_size, names), segment=segment, loans=lent, head=head, number=number)
                del part
            del parts
        else:
            joined, last = _joined(head, columns, messages, message_type, transfer, progress)
            _check_size(last, sizes)
            joined |= {name: values[0] for name, values in _drawn(last, 1).items()}
            yield replace(transfer.bring(joined, (last.batch_rows, *batch_size[1:]), names), head=last)
            del joined
        del message, block, columns  # While the next message is awaited, this one's memory is its batches' alone.


def only_batch(
    answers: Answers, message_type: type[Message], transfer: DeviceTransfer, sizes: range, progress: Progress | None = None
) -> PendingBatch:
    """The one batch that a call answers with. The call ends. `progress` is told of its rows, and the rest is as in `assemble`.

    Raises:
        CodecError: none came, or several.
    """
    try:
        batches = assemble(answers, message_type, transfer, sizes, progress=progress)
        batch = next(batches, None)
        if batch is None or next(batches, None) is not None:
            call = message_type.DESCRIPTOR.name.removesuffix("Response")
            raise CodecError(f"{'no batch' if batch is None else 'more than one batch'} came as the answer to {call}")
        if progress is not None:
            progress(batch.head.batch_rows, batch.head.batch_rows)
        return batch
    finally:
        answers.close()


def _drawn(head: Any, count: int) -> dict[str, Sequence[torch.Tensor]]:
    """What a message says of the draw of its `count` batches: the name of a field -> its values in each of them. No two batches share memory."""
    if not getattr(head, TABLE_SIZE.name, 0):
        return {}
    said = ((TABLE_SIZE, head.table_size), (MIN_PROBABILITY, head.min_probability))
    return {
        field.name: torch.full((count, 1), value, dtype=field.dtype, device="cpu").expand(count, head.batch_rows).unbind(0) for field, value in said
    }


def _parts(columns: dict[str, torch.Tensor], count: int, rows: int, drawn: dict[str, Sequence[torch.Tensor]]) -> Iterator[Columns]:
    """The `count` batches of `rows` rows that a block holds, one after the other, as views of it. Each has what is `drawn` too."""
    if count == 1:
        return iter([columns | {name: values[0] for name, values in drawn.items()} if drawn else columns])
    parts = {name: column.view(count, rows, *column.shape[1:]).unbind(0) for name, column in columns.items()} | drawn
    return ({name: views[n] for name, views in parts.items()} for n in range(count))


def _decoded(message: bytes, message_type: type[Message], loans: SegmentLoans | None) -> tuple[Any, Block | None]:
    """The fields of a message, and its block; None where it only says what became of rows of an epoch that do not come."""
    head: Any
    head, memory = split(message, message_type)
    if not head.batch_rows and not len(memory) and (getattr(head, "progress", None) or getattr(head, "outcomes", None)):
        return head, None
    shared = loans is not None and head.HasField("slot")
    block = decode(loans.borrow(head.slot), longer=True) if loans is not None and shared else decode(memory)
    block.header.check_fields()
    return head, block


def _check_size(head: Any, sizes: range) -> None:
    if head.batch_rows not in sizes:
        raise CodecError(f"a batch of {head.batch_rows} rows came, and {_shown(sizes)} were asked for")


def _shown(sizes: range) -> str:
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _joined(
    head: Any, part: Columns, messages: Iterator[bytes], message_type: type[Message], transfer: DeviceTransfer, progress: Progress | None
) -> tuple[dict[str, torch.Tensor], Any]:
    """A batch of several blocks, of which `part` is the first, and the fields of its last message. A later message may say that fewer rows come."""
    columns = _memory(part, head.batch_rows, transfer)
    done = _place(columns, head, part, 0, head.batch_rows)
    while done < head.batch_rows:
        if progress is not None:
            progress(done, head.batch_rows)
        message = next(messages, None)
        if message is None:
            raise CodecError(f"the stream ended after {done} of {head.batch_rows} rows of a batch")
        before = head.batch_rows
        head, block = _decoded(message, message_type, None)
        done = _place(columns, head, {} if block is None else block.columns, done, before)
    return {name: column[:done] for name, column in columns.items()}, head


def _memory(part: Columns, rows: int, transfer: DeviceTransfer) -> dict[str, torch.Tensor]:
    """New memory for a batch of so many rows like those of `part`."""
    try:
        return {name: transfer.memory((rows, *column.shape[1:]), column.dtype) for name, column in part.items()}
    except RuntimeError as error:  # So torch says that there is none.
        raise ResourceExhaustedError(f"there is no memory for a batch of {rows} rows: {str(error)[:200]}") from None


def _place(columns: Columns, head: Any, part: Columns, done: int, rows: int) -> int:
    """Copies the rows of a block to their place, and gives the place of the next ones. So many rows the batch had before this block."""
    count, total = min((len(column) for column in part.values()), default=0), head.batch_rows
    no_more = total == done < rows and not count  # The rest was overwritten.
    fits = no_more or 0 < count <= total - done
    if head.first_row != done or total > rows or not fits or _kinds(part) != _kinds(columns):
        raise CodecError(f"a block of rows {head.first_row} to {head.first_row + count} of {total} came, {done} of {rows} was next")
    for name, column in part.items():
        copy_rows(column, columns[name][done : done + count])
    return done + count


def _kinds(columns: Columns) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """The dtype and the shape of each field: all blocks of one batch have the same."""
    return {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
