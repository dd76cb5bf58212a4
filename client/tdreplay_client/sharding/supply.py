"""What one shard gives to the batches of a stream: draws that wait in a queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tdreplay.errors import ClosedError, ReplayError, ServerUnavailableError, TableChangedError
from tdreplay.memory import Rows, as_rows, rows_of
from tdreplay.priorities import Updated
from tdreplay.system_fields import MIN_PROBABILITY, TABLE_SIZE
from tdreplay_client.reading.placed_call import PlacedCall
from tdreplay_client.reading.stream import BatchStream
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_batches import ShardBatch, Totals

__all__ = ["NOTHING", "Pull", "Run", "Supply", "add_up"]

OF_THE_DRAW = frozenset({TABLE_SIZE.name, MIN_PROBABILITY.name})
"""Fields that are the same in all rows of a batch: they are made for the whole, and not put together."""
NOTHING = Totals(0, 0.0)
"""Of an empty shard."""


def add_up(*parts: Updated) -> Updated:
    """What became of the rows of all these updates."""
    return Updated(*map(sum, zip(*parts, strict=True)))


class Pull:
    """A batch of a shard's stream: some of its draws.

    Attributes:
        batch: The rows.
        columns: The same as rows of bytes, by field; without those that are the same in all rows.
        rows: How many there are.
        is_weighed: Whether the rows say how probable they were.
        of_draw: The fields that are the same in all rows.
    """

    def __init__(self, batch: ShardBatch) -> None:
        self.batch, self.rows = batch, batch.rows
        self.is_weighed = batch.is_weighed
        self.of_draw = OF_THE_DRAW if self.is_weighed else frozenset()
        own = {name: column for name, column in batch.columns.items() if name not in self.of_draw and column.nbytes}
        self.columns: dict[str, Rows] = {
            name: as_rows(column) if column.is_contiguous() else rows_of(column)
            for name, column in own.items()  # They came over the wire.
        }


class Run(NamedTuple):
    """Draws of a shard that lie one after the other in a pull.

    Attributes:
        pull: Where they are.
        start: The first of them.
        stop: The one after the last.
    """

    pull: Pull
    start: int
    stop: int


class Supply:
    """The draws of one shard, in the order in which the shard made them. One thread takes them; another one opens and ends the stream.

    Attributes:
        shard: Whose they are.
        totals: Of what the shard drew, or would draw, when it was last heard of.
        heard: When that was, as `time.monotonic` says it.
        size: The rows that it had when it was last asked.
        taken: How many rows were taken since the stream began.
        generation_id: Of the shard's table, when its stream was last opened.
        is_renewed: Whether that was another one before.
        error: Why there is no stream, where that is not a lack of rows.

    Args:
        shard: Whose draws these are.
        opened: Opens a stream of the shard that begins with this pull.
    """

    def __init__(self, shard: Shard, opened: Callable[[Shard, int], tuple[BatchStream | PlacedCall, int]]) -> None:
        self.shard, self._opened = shard, opened
        self.totals, self.heard, self.size = NOTHING, 0.0, 0
        self.generation_id, self.is_renewed = "", False
        self.taken, self.waiting = 0, 0
        self.error: ReplayError | None = None
        self._stream: BatchStream | PlacedCall | None = None
        self._source: BatchStream | None = None  # Of the draws that wait.
        self._pulls: deque[Pull] = deque()
        self._start = 0  # Of the first pull's rows, those before it were taken.
        self._skip = 0  # Rows of the next pull that were taken from another stream.
        self._updated = Updated(0, 0)  # By the streams before this one.
        self._sent = 0  # Rows of updates that went to this stream.
        self._opening, self._changing = threading.Lock(), threading.RLock()  # The latter: a signal handler may interrupt its owner.

    # -- what is known of the shard -----------------------------------------------------------------------------------------------------------

    def note(self, totals: Totals, when: float) -> None:
        """Notes of what the shard draws, unless something newer is known."""
        if when >= self.heard:
            self.totals, self.heard = totals, when

    @property
    def is_open(self) -> bool:
        """Whether draws can be taken."""
        return self._stream is not None

    @property
    def call(self) -> PlacedCall | None:
        """The call over which the shard writes its rows to memory of this process. None: there is none; draws come as batches, if at all."""
        return self._stream if isinstance(self._stream, PlacedCall) else None

    @property
    def shared(self) -> bool:
        """Whether they come through memory that is shared with the server."""
        stream = self._stream
        return stream is not None and stream.shared

    @property
    def updated(self) -> Updated:
        """What became of the rows of updates, as far as the server has said. What it will not say any more is stale."""
        stream, before = self._stream, self._updated
        return before if stream is None else add_up(before, stream.updated)

    # -- its stream ---------------------------------------------------------------------------------------------------------------------------

    def open(self, generation_id: str) -> None:
        """Opens the stream where there is none.

        Args:
            generation_id: Of the shard's table.

        Raises:
            ReplayError: it cannot be opened.
        """
        with self._opening:
            if self._stream is not None:
                return
            stream, rows = self._opened(self.shard, self.taken)
            with self._changing:
                self._skip, self._stream, self.error = rows, stream, None
                self.is_renewed |= self.is_other(generation_id)
                self.generation_id = generation_id

    def is_other(self, generation_id: str) -> bool:
        """Whether the draws are of a table of another generation: its rows are other ones now."""
        return self.generation_id not in ("", generation_id)

    def drop(self) -> None:
        """Ends the stream. Draws that were not taken are forgotten: they will be drawn again, where the shard is still the same."""
        stream = self._detached(is_lost=False)
        if stream is not None:
            stream.close()

    def lose(self, error: ReplayError) -> None:
        """Ends the stream of a shard that does not answer, or whose rows are gone. It waits for nothing, and updates on their way count as stale."""
        self.error = error
        stream = self._detached(is_lost=True)
        if stream is not None:
            stream.break_off()
            stream.close()

    def _detached(self, *, is_lost: bool) -> BatchStream | PlacedCall | None:
        """The stream, which is none any more."""
        with self._changing:
            stream, self._stream = self._stream, None
            if stream is not None:
                found, sent = stream.updated, self._sent
                self._updated = add_up(self._updated, found, Updated(0, sent - sum(found) if is_lost else 0))
                self._sent = 0
            if is_lost:
                self.totals, self.heard = NOTHING, time.monotonic()  # It has no part in a draw before it is heard of again.
        return stream

    def empty(self) -> None:
        """Notes that the shard has no row to draw from, and ends the stream."""
        self.note(NOTHING, time.monotonic())
        self.drop()

    def begin_at(self, taken: int) -> None:
        """Ends the stream. The next one begins after so many rows of the seed."""
        with self._opening:
            self.drop()
            self.taken = taken

    def send_priorities(self, row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """Sends new priorities of rows, by the shard's own ids. Where there is no stream they are stale."""
        with self._changing:
            try:
                if self._stream is not None:
                    self._stream.send_priorities(row_ids, priorities)
                    self._sent += len(row_ids)
                    return
            except ClosedError:  # It failed just now.
                pass
            self._updated = add_up(self._updated, Updated(0, len(row_ids)))

    # -- its draws ----------------------------------------------------------------------------------------------------------------------------

    def has(self, rows: int) -> bool:
        """Whether so many draws are here; where the shard writes them itself: so many parts of its call."""
        call = self.call
        return call.done >= rows if call is not None else self.waiting >= rows and self._source is self._stream

    def ensure(self, rows: int) -> bool:
        """Waits until so many draws are here, counted as in `has`. False: the stream is to be opened anew, because the shard was lost, and is back.

        Raises:
            ServerUnavailableError, DeadlineError: the shard is lost.
            EmptyTableError: it has no row.
            ReplayError: as the stream of a table.
        """
        stream = self._stream
        if isinstance(stream, PlacedCall):
            return self._await_parts(stream, rows)
        if stream is not self._source:
            self._forget()
            self._source = stream
        while self.waiting < rows:
            batch = None if stream is None else next(stream, None)
            if stream is None or batch is None:
                raise self.error or ServerUnavailableError(f"shard {self.shard.number} at {self.shard.place.address} is lost")
            if stream.losses:  # It goes on with a server that was started again: the rows that wait may be of a table that is no more.
                self.drop()
                return False
            self._take_in(cast("ShardBatch", batch))
        return True

    def _await_parts(self, call: PlacedCall, parts: int) -> bool:
        """As `ensure`, of parts of a call, which cannot go on with a server that was lost, or with rows of other fields."""
        if parts > call.asked:  # It is not the call that was asked for them, but a later one.
            return False
        try:
            call.wait(parts)
        except TableChangedError:
            self.drop()
            return False
        except ReplayError:
            if not call.over:
                raise
            return False
        if call.head.HasField("totals"):
            self.note(Totals.of(call.head.totals), call.came)
        return True

    def _take_in(self, batch: ShardBatch) -> None:
        self._pulls.append(Pull(batch))
        self.waiting += batch.rows
        if batch.totals is not None:
            self.note(batch.totals, batch.came)
        skipped, self._skip = min(self._skip, batch.rows), 0
        if skipped:
            self._start, self.waiting = skipped, self.waiting - skipped

    def _forget(self) -> None:
        self._pulls.clear()
        self._start = self.waiting = 0

    def take(self, rows: int) -> list[Run]:
        """So many draws, which are here."""
        runs: list[Run] = []
        self.taken += rows
        self.waiting -= rows
        while rows:
            pull = self._pulls[0]
            stop = min(self._start + rows, pull.rows)
            runs.append(Run(pull, self._start, stop))
            rows -= stop - self._start
            self._start = stop
            if stop == pull.rows:
                self._pulls.popleft()
                self._start = 0
        return runs
