"""Selections into framed messages, as many as the client granted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tdreplay.block import layout
from tdreplay.errors import InvalidArgumentError
from tdreplay.fields import Field
from tdreplay.framing import frame
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE, check_whole
from tdreplay_server.tables.selection import Selection
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.shared_memory import SharedSlots, offer

__all__ = ["Credits", "blocks", "merged", "per_message", "slot_bytes", "streamed"]


class Credits:
    """How many batches the client still wants.

    Args:
        first: what it granted with its query.
        requests: its further messages, each of which grants more, and gives slots of shared memory back.
        slots: those.

    Raises:
        InvalidArgumentError: (here and in `take`) it grants a negative number, or gives back what it does not have.
    """

    def __init__(self, first: int, requests: Iterator[Request], slots: SharedSlots | None) -> None:
        self._left = check_whole(first, "credits", 0)
        self._requests, self._slots = requests, slots

    def take(self, most: int) -> int:
        """Uses up to `most` credits, and says how many. Waits for the first; 0 where the client closed its side."""
        while not self._left:
            request = next(self._requests, None)
            if request is None:
                return 0
            self._left = check_whole(request.head.credits, "credits", 0)
            if self._slots is not None:
                self._slots.release(request.head.released_slots)
            elif request.head.released_slots:
                raise InvalidArgumentError(f"released_slots ({request.head.released_slots[0]}): the server shares no memory with this call")
        taken = min(most, self._left)
        self._left -= taken
        return taken


def row_bytes(fields: Iterable[Field]) -> int:
    """Bytes of one row's values of `fields`."""
    return sum(field.row_bytes for field in fields)


def per_message(wanted: int, batch_size: int, fields: Iterable[Field]) -> int:
    """How many batches go into one message, where the client wants at most so many: what fits into a block, and into one batch.

    Each row costs its slot and its id here, also where its fields have no bytes.
    """
    fitting = min(BLOCK_BYTES // max(1, batch_size * row_bytes(fields)), MAX_BATCH_SIZE // batch_size)
    return max(1, min(check_whole(wanted, "batches_per_message", 0), fitting))


def slot_bytes(batches: int, batch_size: int, selection: Selection) -> int:
    """The size of a block of so many batches of what `selection` selects."""
    return layout(selection.fields, batches * batch_size, selection.row_shape, selection.dim_names).size


def blocks(table: Table, selection: Selection, response: Any, batch_rows: int) -> Iterator[bytes]:
    """The selected rows as framed messages of the type `response`, each gathered when it is asked for. `batch_rows`: the rows of one batch."""
    rows_per_block = -(-selection.rows // max(1, -(-row_bytes(selection.fields) * selection.rows // BLOCK_BYTES)))
    rows_per_block = min(rows_per_block, MAX_BATCH_SIZE)  # Also of rows without bytes.
    for start in range(0, selection.rows, rows_per_block):
        stop = min(start + rows_per_block, selection.rows)
        block = layout(selection.fields, stop - start, selection.row_shape, selection.dim_names)
        message, memory = frame(response(batch_rows=batch_rows, first_row=start), block.size)
        table.read(selection, start, stop, block.write_header(memory))
        yield message


def streamed(table: Table, selections: Iterator[tuple[Selection, int]], response: Any, slots: SharedSlots | None, offered: bool) -> Iterator[Any]:
    """The messages of a stream: the answer to an offer of shared memory, where there was one, then each selection, in a slot or in messages.

    After a reset a table may have larger rows than those that the slots were made for: these go in messages.
    """
    if offered:
        yield response(shared_memory=offer(slots))
    for selection, batch_rows in selections:
        block = layout(selection.fields, selection.rows, selection.row_shape, selection.dim_names)
        lent = None if slots is None else slots.lend(block.size)
        if lent is None:
            yield from blocks(table, selection, response, batch_rows)
        else:
            slot, memory = lent
            # In several threads: the client, which gets the batch without a copy, leaves a core free.
            table.read(selection, 0, selection.rows, block.write_header(memory), threads=True)
            yield response(batch_rows=batch_rows, slot=slot)


def merged(batches: Iterator[Selection], most: int, granted: Credits) -> Iterator[tuple[Selection, int]]:
    """The batches as selections of up to `most` of them, and the rows of one batch: what one message carries. At the end no credit is awaited."""
    ahead = next(batches, None)
    while ahead is not None and (count := granted.take(most)):
        group = [ahead, *itertools.islice(batches, count - 1)]
        ahead = next(batches, None)
        for rows, run in itertools.groupby(group, key=lambda batch: batch.rows):
            yield _joined(list(run)), rows


def _joined(run: list[Selection]) -> Selection:
    if len(run) == 1:
        return run[0]
    slots = np.concatenate([batch.slots(0, batch.rows) for batch in run])
    return replace(run[0], rows=len(slots), slots=lambda start, stop: slots[start:stop])
