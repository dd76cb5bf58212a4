"""Rows that a server writes straight into batches of its client, which other servers may fill with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_whole
from tdreplay.mapped_segments import MappedSegments
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.storage.ring import Slots
from tdreplay_server.tables.selection import RowFormat, Selection
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.sample_call import DrawBatches, SampleCall

__all__ = ["PlacedRows", "placed_rows"]

MOST_PARTS = 1024
"""The most parts of batches that one message asks for."""


class PlacedRows:
    """Rows of a table on their way to batches of a client.

    Args:
        table: Where they are drawn.
        row: What is read of each row.
        batch_rows: Rows of a batch.
        draw: Draws some.
    """

    def __init__(self, table: Table, row: RowFormat, batch_rows: int, draw: DrawBatches) -> None:
        self._table, self._draw, self._rows = table, draw, batch_rows
        self._row_bytes, self.layout = row.row_bytes, row.block(batch_rows)

    def write(self, parts: Sequence[Any], segments: MappedSegments) -> Selection:
        """Draws the rows of these parts, one at least, and writes them to their places. Gives the last draw.

        Raises:
            InvalidArgumentError: a slot or a place is not there. Nothing was written.
            TableChangedError: the rows have another format now.
        """
        check_whole(len(parts), "the number of placed", 1, MOST_PARTS)
        return [self._written(*part) for part in [self._checked(part, segments) for part in parts]][-1]

    def _checked(self, part: Any, segments: MappedSegments) -> tuple[Bytes, Slots]:
        slot, places = check_whole(part.slot, "slot", 0, segments.count - 1), np.array(part.places, np.int64)
        if not len(places) or places[-1] >= self._rows or (np.diff(places) <= 0).any():
            raise InvalidArgumentError(f"places ({len(places)} of them) must be at least one, ascend, and be rows of a batch of {self._rows}")
        return segments.block(slot), places

    def _written(self, memory: Bytes, places: Slots) -> Selection:
        drawn = self._draw(1, pb.NextBatch(rows=len(places))).selection
        self._table.read(drawn, 0, len(places), self.layout.places(memory), threads=True, places=places)
        self._table.note_sent(len(places) * self._row_bytes)
        return drawn


def placed_rows(
    rows: PlacedRows, requests: Iterator[Request], reached: AbstractContextManager[MappedSegments | None], said: SampleCall
) -> Iterator[pb.SampleResponse]:
    """The answers of a Sample call whose client offers memory for its batches.

    The first one says whether the server writes there. Then comes one for each message that asks for rows, when they are in their places.

    Args:
        rows: The rows.
        requests: The further messages.
        reached: The client's memory; None: it is none to which this server writes.
        said: What the client's messages say beside that.

    Raises:
        ReplayError: as `PlacedRows.write`.
    """
    with reached as segments:
        if segments is None:
            yield pb.SampleResponse()
            return
        yield pb.SampleResponse(placed_header=rows.layout.header)
        done = 0
        for request in requests:
            if request.head.credits or request.head.next or request.head.released_slots:
                raise InvalidArgumentError("credits, next and released_slots: a call with client_memory asks for its batches by placed alone")
            said.note(request.head)
            if request.head.placed:
                drawn = rows.write(request.head.placed, segments)
                done += len(request.head.placed)
                yield pb.SampleResponse(placed=done, **said.head(drawn))
