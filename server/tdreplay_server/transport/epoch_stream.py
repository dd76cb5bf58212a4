"""The batches of epochs as the messages of an answer. Each is read when it is sent, so it has the rows that are stored then."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from tdreplay.epoch_messages import progress_to_message
from tdreplay.epochs import EpochPlace
from tdreplay.errors import OverwrittenError, TableChangedError
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.tables.epochs import EpochBatch, EpochBatches
from tdreplay_server.tables.selection import joined
from tdreplay_server.tables.table import Table
from tdreplay_server.transport.call import ClientGoneError
from tdreplay_server.transport.credits import Credits
from tdreplay_server.transport.encoding import Outgoing, block_message, in_segment
from tdreplay_server.transport.shared_memory import Segments

__all__ = ["EpochStream"]

EMPTY_BATCHES, SILENT_SECONDS = 256, 0.25
"""So many batches may be left out, and so long may the next one be looked for, before the client hears of it.

The server then hears whether the client is still there.
"""

CHANGED = (OverwrittenError, TableChangedError)
"""What was selected cannot be read any more: it is selected again, and where that cannot be, the error says why."""


class EpochStream:
    """The messages of an Epoch call.

    Args:
        table: Has the rows.
        batches: Says which they are.
        segments: The shared memory of the call; None: it has none.
        is_active: Whether the client still waits.
        says_progress: Whether the client wants to know where it stands.
    """

    def __init__(self, table: Table, batches: EpochBatches, segments: Segments | None, is_active: Callable[[], bool], *, says_progress: bool) -> None:
        self._table, self._batches, self._segments = table, batches, segments
        self._is_active, self._says_progress = is_active, says_progress

    def messages(self, place: EpochPlace, granted: Credits, most: int) -> Iterator[Any]:
        """The batches from `place` on, up to `most` of them in a message. No credit is awaited at the end."""
        owed, told, left_out = 0, place, 0
        self._spoke = time.monotonic()
        while not self._batches.plan.is_over(place):
            batch = yield from self._found(place)
            if not batch.rows.rows:
                place, left_out = batch.after, left_out + 1
                if left_out % EMPTY_BATCHES == 0 or self._is_silent:
                    told = yield from self._progress(place)
                continue
            owed = owed or granted.take(most)
            if not owed:
                return
            try:
                run = self._run(batch, owed)
                place = told = yield from self._sent(run)
            except CHANGED:
                continue  # Nothing of it was sent. It comes as it is now, or the next try says why it cannot.
            owed, self._spoke = owed - len(run), time.monotonic()
        if self._batches.plan.of_steps and place != told:
            yield from self._progress(place)  # Else the client would not know how much of what did not come was overwritten.

    def _found(self, place: EpochPlace) -> Generator[Any, None, EpochBatch]:
        """The batch at a place. Where it takes long to find, the client hears that it is looked for."""
        sought = self._batches.sought(place)
        while (batch := next(sought)) is None:
            if self._is_silent:
                yield from self._progress(place)
        return batch

    @property
    def _is_silent(self) -> bool:
        """Whether the client has heard nothing for a while."""
        return time.monotonic() - self._spoke >= SILENT_SECONDS

    def _progress(self, place: EpochPlace) -> Generator[Any, None, EpochPlace]:
        """Says how far it is, where the client wants to know, and gives the place.

        Raises:
            ClientGoneError: the client is gone. Who is told nothing could be looked for rows for ever.
        """
        if not self._is_active():
            raise ClientGoneError
        if self._says_progress:
            yield pb.EpochResponse(**self._head([place]))
            self._spoke = time.monotonic()
        return place

    def _run(self, first: EpochBatch, most: int) -> list[EpochBatch]:
        """The batches that share a message: up to `most` with as many rows each, one after the other, as far as they are found at once."""
        run = [first]
        while len(run) < most and not self._batches.plan.is_over(run[-1].after):
            try:
                batch = next(self._batches.sought(run[-1].after))
            except CHANGED:
                break  # It is raised in place of that batch.
            if batch is None or batch.rows.rows != first.rows.rows:
                break
            run.append(batch)
        return run

    def _sent(self, run: Sequence[EpochBatch]) -> Generator[Any, None, EpochPlace]:
        """Sends the batches of a run, and gives the place after them."""
        rows = joined([batch.rows for batch in run])
        outgoing = Outgoing(rows, run[0].rows.rows, self._head([batch.after for batch in run]))
        message = None if self._segments is None else in_segment(self._table, outgoing, pb.EpochResponse, self._segments)
        if message is not None:
            yield message
        elif rows.rows <= self._rows_of_a_block(rows.rows):
            yield self._block(outgoing, 0)
        else:
            return (yield from self._parts(run[0]))
        return run[-1].after

    def _head(self, places: Sequence[EpochPlace]) -> Mapping[str, Any]:
        return {"progress": list(map(progress_to_message, places))} if self._says_progress else {}

    def _rows_of_a_block(self, rows: int) -> int:
        """How many rows each block has, where so many rows are to be sent in blocks of about one size."""
        blocks = max(1, -(-self._batches.format.row_bytes * rows // BLOCK_BYTES))
        return min(-(-rows // blocks), MAX_BATCH_SIZE)

    def _block(self, outgoing: Outgoing, first_row: int) -> bytes:
        """A message with one block of the rows, of which the first has that place in its batch."""
        rows, batch_rows, head = outgoing
        return block_message(self._table, rows, 0, rows.rows, pb.EpochResponse(batch_rows=batch_rows, first_row=first_row, **head))

    def _parts(self, batch: EpochBatch) -> Generator[bytes, None, EpochPlace]:
        """A batch in several blocks. Rows that are overwritten meanwhile are left out of the blocks that were not sent yet."""
        places, announced, after = self._batches.places(batch), batch.rows.rows, batch.after
        step, start, sent, gone = self._rows_of_a_block(places), 0, 0, 0
        while start < places and sent < announced:
            part = self._batches.part(batch, start, start + step, announced - sent)
            if part.rows.rows or (sent and not part.left):  # A block without rows says that no more come.
                total = sent + part.rows.rows + part.left
                after = self._batches.after(batch, gone + part.gone + part.gone_later)
                try:
                    message = self._block(Outgoing(part.rows, total, self._head([after])), sent)
                except CHANGED:
                    continue
                yield message
                sent, announced = sent + part.rows.rows, total
            start, gone = start + step, gone + part.gone
        if not sent:
            raise OverwrittenError("all rows of the batch were overwritten before one of them was read")
        return after
