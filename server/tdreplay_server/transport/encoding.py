"""Selected rows as the messages of an answer. Their blocks travel in the messages, or in memory that the client shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tdreplay.framing import frame
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE, check_whole
from tdreplay_server.tables.selection import RowFormat, Selection
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.shared_memory import Segments, offer

__all__ = ["Outgoing", "batches_per_message", "block_message", "in_segment", "messages", "streamed"]


MAX_BATCHES = 1024
"""Batches of one message."""


def batches_per_message(wanted: int, batch_size: int, row: RowFormat) -> int:
    """How many batches one message carries: at most `wanted`, no more bytes than a block may have, and no more rows than a batch may have.

    Rows without bytes count too: the server holds the slot and the id of each. Batches count, because each is a draw of its own.
    """
    fitting = min(BLOCK_BYTES // max(1, batch_size * row.row_bytes), MAX_BATCH_SIZE // batch_size, MAX_BATCHES)
    return max(1, min(check_whole(wanted, "batches_per_message", 0), fitting))


class Outgoing(NamedTuple):
    """Rows to be sent.

    Attributes:
        selection: The rows.
        batch_rows: The rows of one batch.
        head: Fields of the messages that bring them, beside those that say where the rows are.
    """

    selection: Selection
    batch_rows: int
    head: Mapping[str, Any] = MappingProxyType({})


def messages(table: Table, outgoing: Outgoing, response: Any) -> Iterator[bytes]:
    """The selected rows in messages of the type `response`, each with a block. The rows of a message are gathered when it is asked for."""
    selection, batch_rows, head = outgoing
    row = selection.format
    rows_per_block = -(-selection.rows // max(1, -(-row.row_bytes * selection.rows // BLOCK_BYTES)))
    rows_per_block = min(rows_per_block, MAX_BATCH_SIZE)  # Rows without bytes would all go into one block.
    for start in range(0, selection.rows, rows_per_block):
        stop = min(start + rows_per_block, selection.rows)
        yield block_message(table, selection, start, stop, response(batch_rows=batch_rows, first_row=start, **head))


def block_message(table: Table, selection: Selection, start: int, stop: int, head: Any) -> bytes:
    """A message with the fields of `head`, and a block of the selected rows from start to stop, which are gathered now.

    Raises:
        TableChangedError: as `Table.read`.
        OverwrittenError: a row that was pinned is not there any more.
    """
    block = selection.format.block(stop - start)
    message, memory = frame(head, block.size)
    table.read(selection, start, stop, block.write_header(memory))
    table.note_sent(block.size)
    return message


def streamed(table: Table, sending: Iterator[Outgoing], response: Any, segments: Segments | None, *, offered: bool) -> Iterator[Any]:
    """The messages of a stream: first the server's offer, where the client asked for shared memory, then those of each selection.

    A selection's block goes into a segment of shared memory where one is free and large enough, else into messages. After a reset a table may have
    larger rows than those that the segments were made for.

    Args:
        table: holds the rows.
        sending: the batches.
        response: the type of the messages.
        segments: the shared memory of the call; None: it has none.
        offered: whether the client asked for shared memory.
    """
    if offered:
        yield response(shared_memory=offer(segments))
    for outgoing in sending:
        message = None if segments is None else in_segment(table, outgoing, response, segments)
        if message is None:
            yield from messages(table, outgoing, response)
        else:
            yield message


def in_segment(table: Table, outgoing: Outgoing, response: Any, segments: Segments) -> Any:
    """The message that says in which segment the selected rows are; None where there is no segment for them."""
    selection, batch_rows, head = outgoing
    block = selection.format.block(selection.rows)
    lent = segments.lend(block.size)
    if lent is None:
        return None
    segment, memory = lent
    try:
        # In several threads: the client, which gets the batch without a copy, leaves a core free.
        table.read(selection, 0, selection.rows, block.write_header(memory), threads=True)
    except BaseException:
        segments.release([segment])
        raise
    table.note_sent(block.size)
    return response(batch_rows=batch_rows, slot=segment, **head)
