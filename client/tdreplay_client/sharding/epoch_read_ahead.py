"""The places of epochs over shards, in parts that are asked of all shards at once, and read ahead."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from tdreplay.limits import BLOCK_BYTES, MAX_EPOCH_IDS
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
SHARD_BYTES, PART_BYTES = 1 << 20, 16 << 20
"""A part has at most about so many bytes from each shard and in all, unless it is a single batch. Small batches share calls: a call costs 1 ms."""
PLACES, FEW_PLACES = 1 << 12, 32
"""The most places of a part of several batches, and, of steps, so many more than are probably needed."""
MOST_BYTES = 64 << 20
"""Of steps, where it is not known how many come at some places: the most bytes of a part that has more rows than a batch."""
FIRST_IDS = 1 << 8
"""The most ids that one call asks for as long as it is not known how many bytes a row has."""
MOST_THREADS = 32


Answer: TypeAlias = "tuple[Slots, EpochAnswer, int]"
"""Some of the places of a part, counted from its first one; what their shard says of them; and the place of that among the shards."""


class _Asked(NamedTuple):
    """A part that was asked for.

    Attributes:
        ids: The rows that are to come, as their shards number them.
        shards: The numbers of their shards.
        parts: Some of the places each, for which a call asks.
        came: What the calls brought or raised; None: nobody waits for it any more. A queue, and no futures: Ctrl-C may not leave their locks behind.
    """

    ids: Slots
    shards: Slots
    parts: Sequence[Slots]
    came: queue.SimpleQueue[Answer | BaseException | None]

    def places(self) -> Places | None:
        """The part, once all answers are there; None: nobody waits for it. Raises what a call raised."""
        outcomes, given = np.zeros(len(self.ids), np.uint8), []
        for _ in self.parts:
            answer = self.came.get()
            if answer is None:
                return None
            if isinstance(answer, BaseException):
                raise answer
            places, found, shard_place = answer
            outcomes[places] = found.outcomes
            if found.batch is not None:
                given.append(Given(places[found.comes], found.batch, int(self.shards[places[0]]), shard_place))
        return Places(self.ids, self.shards, outcomes, given)


class ReadAhead:
    """The parts of a plan's epochs, in turn, read ahead by threads. A part has whole batches, or, of steps, what probably is one at least.

    The first parts are a batch each, and each that is taken doubles the next ones. What is read ahead is bounded: no part has more than `PART_BYTES`,
    or a batch where that is more; of steps sometimes `MOST_BYTES`.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        place: Where it begins.
        patience: As in `WindowRows`.
        row_bytes: The bytes of a row, as far as that is known; 0: it is not.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, place: ShardedPlace, patience: float | None, row_bytes: int) -> None:
        self._plan, self._epoch, self._position, self._row_bytes = plan, place.epoch, place.position, row_bytes
        self._closed = threading.Event()
        self._numbers = np.array([window.shard for window in plan.windows], np.int64)
        self.windows = [WindowRows(shards, plan, window, patience, self._closed) for window in plan.windows]
        self._callers = Callers(min(MOST_THREADS, READ_AHEAD * len(plan.windows)))
        self._waiting: deque[_Asked] = deque()
        self._taken: _Asked | None = None
        self._places_of_one, self._batches = 1.0, 1

    def take(self) -> Places | None:
        """The next part; None: there is none, or it was closed. Raises what its shards raised."""
        self._ask()
        if not self._waiting:
            return None
        self._taken = asked = self._waiting.popleft()
        found = None if self._closed.is_set() else asked.places()
        if found is None:
            return None
        self._note(found)
        self._ask()
        return found

    def _note(self, found: Places) -> None:
        """Notes what is to be known of a part before the next one is asked for."""
        come, self._batches = int(found.ranks[-1]), min(2 * self._batches, PLACES)
        self._places_of_one = max(1.0, len(found) / max(1, come))
        if come:
            self._row_bytes = max(self._row_bytes, found.first.nbytes // found.first.rows)

    def _ask(self) -> None:
        """Asks for the next parts, as far as there is room."""
        plan = self._plan
        while len(self._waiting) < READ_AHEAD and self._epoch < plan.query.n_epochs and plan.share:
            stop = min(self._position + self._width, plan.share)
            if self._closed.is_set():
                return
            self._waiting.append(self._asked(stop))
            self._epoch, self._position = (self._epoch, stop) if stop < plan.share else (self._epoch + 1, 0)

    @property
    def _width(self) -> int:
        """How many places the next part has."""
        size, row_bytes = self._plan.query.batch_size, self._row_bytes
        part_bytes = min(PART_BYTES, SHARD_BYTES * len(self.windows))
        rows = size if not row_bytes else size * max(1, min(self._batches, min(PLACES, part_bytes // row_bytes) // size))
        if not self._plan.of_steps:
            return rows
        most = PLACES if not row_bytes else min(PLACES, max(size, MOST_BYTES // row_bytes))
        return min(most, int(1.1 * rows * self._places_of_one) + FEW_PLACES)

    @property
    def _ids(self) -> int:
        """For how many rows a call asks: their answer is one block."""
        return min(MAX_EPOCH_IDS, max(1, BLOCK_BYTES // self._row_bytes)) if self._row_bytes else FIRST_IDS

    def _asked(self, stop: int) -> _Asked:
        numbers, ids = self._plan.rows_at(self._epoch, self._position, stop)
        most, parts = self._ids, list[tuple[int, Slots]]()
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            parts += [(int(number), mine[start : start + most]) for start in range(0, len(mine), most)]
        asked = _Asked(ids, self._numbers[numbers], [some for _, some in parts], queue.SimpleQueue())
        for number, some in parts:
            self._callers.call(_bring, self.windows[number], ids[some], some, asked.came)
        return asked

    def close(self) -> None:
        """Asks for nothing more. Who waits gets None. Any thread may call it."""
        self._closed.set()
        taken = self._taken
        if taken is not None:
            taken.came.put(None)
        self._callers.close()


def _bring(window: WindowRows, ids: Slots, places: Slots, came: queue.SimpleQueue[Answer | BaseException | None]) -> None:
    """In a thread: asks for rows of a window."""
    try:
        came.put((places, *window.at(ids)))
    except BaseException as error:  # noqa: BLE001 - whoever waits for the rows raises it.
        came.put(error)
