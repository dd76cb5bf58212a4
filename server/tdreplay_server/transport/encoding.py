"""Selected rows as the messages of an answer. Their blocks travel in the messages, or in memory that the client shares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tdreplay.framing import frame
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE, check_whole
from tdreplay_server.tables.selection import RowFormat, Selection, joined
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.credits import Credits
from tdreplay_server.transport.shared_memory import Segments, offer

__all__ = ["batches_per_message", "merged", "messages", "streamed"]


MAX_BATCHES = 1024
"""Batches of one message."""


def batches_per_message(wanted: int, batch_size: int, row: RowFormat) -> int:
    """How many batches one message carries: at most `wanted`, no more bytes than a block may have, and no more rows than a batch may have.

    Rows without bytes count too: the server holds the slot and the id of each. Batches count, because each is a draw of its own.
    """
    fitting = min(BLOCK_BYTES // max(1, batch_size * row.row_bytes), MAX_BATCH_SIZE // batch_size, MAX_BATCHES)
    return max(1, min(check_whole(wanted, "batches_per_message", 0), fitting))


def messages(table: Table, selection: Selection, response: Any, batch_rows: int) -> Iterator[bytes]:
    """The selected rows in messages of the type `response`, each with a block. The rows of a message are gathered when it is asked for.

    `batch_rows`: the rows of one batch.
    """
    row = selection.format
    rows_per_block = -(-selection.rows // max(1, -(-row.row_bytes * selection.rows // BLOCK_BYTES)))
    rows_per_block = min(rows_per_block, MAX_BATCH_SIZE)  # Rows without bytes would all go into one block.
    for start in range(0, selection.rows, rows_per_block):
        stop = min(start + rows_per_block, selection.rows)
        block = row.block(stop - start)
        message, memory = frame(response(batch_rows=batch_rows, first_row=start), block.size)
        table.read(selection, start, stop, block.write_header(memory))
        yield message


def streamed(table: Table, selections: Iterator[tuple[Selection, int]], response: Any, segments: Segments | None, *, offered: bool) -> Iterator[Any]:
    """The messages of a stream: first the server's offer, where the client asked for shared memory, then those of each selection.

    A selection's block goes into a segment of shared memory where one is free and large enough, else into messages. After a reset a table may have
    larger rows than those that the segments were made for.

    Args:
        table: holds the rows.
        selections: each with the rows of one batch.
        response: the type of the messages.
        segments: the shared memory of the call; None: it has none.
        offered: whether the client asked for shared memory.
    """
    if offered:
        yield response(shared_memory=offer(segments))
    for selection, batch_rows in selections:
        message = None if segments is None else _in_shared_memory(table, selection, response, segments, batch_rows)
        if message is None:
            yield from messages(table, selection, response, batch_rows)
        else:
            yield message


def _in_shared_memory(table: Table, selection: Selection, response: Any, segments: Segments, batch_rows: int) -> Any:
    """The message that says in which segment the selected rows are; None where there is no segment for them."""
    block = selection.format.block(selection.rows)
    lent = segments.lend(block.size)
    if lent is None:
        return None
    segment, memory = lent
    # In several threads: the client, which gets the batch without a copy, leaves a core free.
    table.read(selection, 0, selection.rows, block.write_header(memory), threads=True)
    return response(batch_rows=batch_rows, slot=segment)


def merged(batches: Iterator[Selection], most: int, granted: Credits) -> Iterator[tuple[Selection, int]]:
    """One selection for each message: up to `most` batches, all with the same number of rows; and that number. No credit is awaited at the end."""
    ahead = next(batches, None)
    while ahead is not None and (count := granted.take(most)):
        group = [ahead, *itertools.islice(batches, count - 1)]
        ahead = next(batches, None)
        for rows, run in itertools.groupby(group, key=lambda batch: batch.rows):
            yield joined(list(run)), rows
