"""The places of epochs over shards, in parts that are asked of all shards at once, and read ahead."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, NamedTuple, cast

import numpy as np

from tdreplay.limits import BLOCK_BYTES
from tdreplay.selecting import Slots
from tdreplay_client.sharding.callers import Callers
from tdreplay_client.sharding.epoch_answers import EpochAnswer
from tdreplay_client.sharding.epoch_places import Given, Places
from tdreplay_client.sharding.epoch_plan import ShardedPlace, ShardedPlan
from tdreplay_client.sharding.epoch_rows import WindowRows
from tdreplay_client.sharding.shard_set import ShardSet

__all__ = ["PLACES", "ReadAhead"]

READ_AHEAD = 2
"""Parts that are on their way while one is used."""
PART_BYTES = 1 << 20
"""About so many bytes a part has, unless it is a single batch. A call costs as much as some hundred small rows, so small batches share it."""
PLACES, FEW_PLACES = 1 << 12, 32
"""The most places of a part of several batches, and, of steps, so many more than are probably needed."""
MOST_BYTES = 64 << 20
"""Of steps, where it is not known how many come at some places: the most bytes of a part that has more rows than a batch."""
MOST_IDS = 1 << 13
"""The most ids that one call asks for: its message may have 128 KiB."""
FIRST_IDS = 1 << 8
"""The same as long as it is not known how many bytes a row has."""
MOST_THREADS = 32


class _Asked(NamedTuple):
    """A part that was asked for.

    Attributes:
        ids: The rows that are to come, as their shards number them.
        shards: The numbers of their shards.
        answers: Some of the places each, counted from the first one, with what their shard says of them.
    """

    ids: Slots
    shards: Slots
    answers: list[tuple[Slots, Future[tuple[EpochAnswer, int]]]]

    def places(self) -> Places:
        """The part. All answers are there."""
        outcomes, given = np.zeros(len(self.ids), np.uint8), []
        for places, future in self.answers:
            answer, shard_place = future.result()
            outcomes[places] = answer.outcomes
            if answer.batch is not None:
                given.append(Given(places[answer.comes], answer.batch, int(self.shards[places[0]]), shard_place))
        return Places(self.ids, self.shards, outcomes, given)


class ReadAhead:
    """The parts of a plan's epochs, in turn, read ahead by threads. A part has whole batches, or, of steps, what probably is one at least.

    What is read ahead is bounded: no part has more than `PART_BYTES`, or a batch where that is more; of steps sometimes `MOST_BYTES`.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        place: Where it begins.
        patience: As in `WindowRows`.
        row_bytes: The bytes of a row, as far as that is known; 0: it is not.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, place: ShardedPlace, patience: float | None, row_bytes: int) -> None:
        self._plan, self._epoch, self._position, self._row_bytes = plan, place.epoch, place.position, row_bytes
        self._closed, self._end, self._closing = threading.Event(), Future[None](), threading.Lock()
        self._numbers = np.array([window.shard for window in plan.windows], np.int64)
        self.windows = [WindowRows(shards, plan, window, patience, self._closed) for window in plan.windows]
        self._callers = Callers(min(MOST_THREADS, READ_AHEAD * len(plan.windows)))
        self._waiting: deque[_Asked] = deque()
        self._places_of_one = 1.0

    def take(self) -> Places | None:
        """The next part; None: there is none, or it was closed. Raises what its shards raised."""
        self._ask()
        if not self._waiting:
            return None
        asked = self._waiting.popleft()
        for _, future in asked.answers:
            wait(cast("list[Future[Any]]", [self._end, future]), return_when=FIRST_COMPLETED)
            if self._end.done():
                return None
        found = asked.places()
        self._note(found)
        self._ask()
        return found

    def _note(self, found: Places) -> None:
        """Notes what is to be known of a part before the next one is asked for."""
        come = int(found.ranks[-1])
        self._places_of_one = max(1.0, len(found) / max(1, come))
        if come:
            self._row_bytes = max(self._row_bytes, found.first.nbytes // found.first.rows)

    def _ask(self) -> None:
        """Asks for the next parts, as far as there is room."""
        plan = self._plan
        while len(self._waiting) < READ_AHEAD and self._epoch < plan.query.n_epochs and plan.share:
            stop = min(self._position + self._width, plan.share)
            with self._closing:
                if self._end.done():
                    return
                self._waiting.append(self._asked(stop))
            self._epoch, self._position = (self._epoch, stop) if stop < plan.share else (self._epoch + 1, 0)

    @property
    def _width(self) -> int:
        """How many places the next part has."""
        size, row_bytes = self._plan.query.batch_size, self._row_bytes
        rows = size if not row_bytes else size * max(1, min(PLACES, PART_BYTES // row_bytes) // size)
        if not self._plan.of_steps:
            return rows
        most = PLACES if not row_bytes else min(PLACES, max(size, MOST_BYTES // row_bytes))
        return min(most, int(1.1 * rows * self._places_of_one) + FEW_PLACES)

    @property
    def _ids(self) -> int:
        """For how many rows a call asks: their answer is one block."""
        return min(MOST_IDS, max(1, BLOCK_BYTES // self._row_bytes)) if self._row_bytes else FIRST_IDS

    def _asked(self, stop: int) -> _Asked:
        numbers, ids = self._plan.rows_at(self._epoch, self._position, stop)
        asked, most = _Asked(ids, self._numbers[numbers], []), self._ids
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            for some in (mine[start : start + most] for start in range(0, len(mine), most)):
                asked.answers.append((some, self._callers.call(self.windows[number].at, ids[some])))
        return asked

    def close(self) -> None:
        """Asks for nothing more. Who waits gets None."""
        with self._closing:
            self._closed.set()
            if not self._end.done():
                self._end.set_result(None)
            self._callers.close()
