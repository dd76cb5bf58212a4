"""The rows at some places of an epoch over shards, asked of all shards at once, and read ahead."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tdreplay.errors import ServerUnavailableError, TableChangedError, TableNotFoundError
from tdreplay.selecting import Slots
from tdreplay_client.sharding.callers import Callers
from tdreplay_client.sharding.epoch_answers import LOST, OVERWRITTEN, REPLACED, EpochAnswer, Outcomes, come_of
from tdreplay_client.sharding.epoch_plan import ShardedPlace, ShardedPlan, ShardWindow
from tdreplay_client.sharding.joining import Part
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.shard_set import ShardSet

__all__ = ["PLACES", "READ_AHEAD", "Places", "ReadAhead", "WindowRows"]

log = logging.getLogger("tdreplay")
READ_AHEAD = 2
"""Parts of an epoch that are on their way while one is used: a part has the rows of a batch."""
PLACES, FEW_PLACES = 1 << 12, 32
"""Of a table of steps: the most places of a part, and so many more than are probably needed for a batch."""
MOST_IDS = 1 << 13
"""The most ids that one call asks for: its message may have 128 KiB."""
MOST_THREADS = 32
PAUSE_SECONDS = 0.1
"""The pause between two looks whether a lost shard is back."""


@dataclass(frozen=True)
class _Given:
    """Rows that one answer brought: which of the places they are for, in ascending order."""

    places: Slots
    batch: ShardBatch
    number: int
    shard_place: int


class Places:
    """What lies at some places of an epoch, one after the other.

    Attributes:
        start: The first place.
        outcomes: What becomes of each place's row.
        ids: The rows that are to come, as their shards number them.
        shards: The numbers of their shards.
    """

    def __init__(self, start: int, ids: Slots, shards: Slots, outcomes: Outcomes, given: list[_Given]) -> None:
        self.start, self.ids, self.shards, self.outcomes, self._given = start, ids, shards, outcomes, given

    @property
    def comes(self) -> npt.NDArray[np.bool_]:
        """For each place whether a row comes."""
        return come_of(self.outcomes)

    @property
    def gone(self) -> npt.NDArray[np.bool_]:
        """For each place whether its row was overwritten."""
        return np.isin(self.outcomes, (OVERWRITTEN, REPLACED))

    @property
    def lost(self) -> npt.NDArray[np.bool_]:
        """For each place whether its row is gone with its shard."""
        return np.isin(self.outcomes, LOST)

    def parts(self, start: int, stop: int) -> list[tuple[Part, Slots]]:
        """The rows that come at the places from start to stop of these, by answers, each with the places of its rows."""
        found = []
        for given in self._given:
            first, last = (int(np.searchsorted(given.places, place)) for place in (start, stop))
            if first < last:
                found.append((Part(given.batch, given.number, given.shard_place, first, last), given.places[first:last]))
        return found


class WindowRows:
    """The rows of a window, of its shard. One thread may use it at a time, or several.

    Where the buffer goes on without lost shards (`patience`), rows of a shard whose table is another one by now, or that is lost for longer than
    that, are gone for good.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        window: Those of this shard.
        patience: For how many seconds a lost shard is waited for; None: as long as its table waits, and then it is an error.
        closed: Set when nobody waits any more.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, window: ShardWindow, patience: float | None, closed: threading.Event) -> None:
        self._shards, self._plan, self._window, self._patience, self._closed = shards, plan, window, patience, closed
        self.oldest = 0  # The oldest row that the shard had when it was last asked.
        self.is_gone = False  # The shard's table is another one by now.

    @property
    def has_none_left(self) -> bool:
        """Whether all rows were overwritten."""
        return self.oldest >= self._window.end_row_id

    def at(self, ids: Slots) -> tuple[EpochAnswer, int]:
        """What the shard says of some rows, and its place among the shards.

        Raises:
            TableChangedError: its table is another one by now.
            ServerUnavailableError: it is lost.
        """
        if self._plan.query.on_overwrite == "skip" and len(ids) and int(ids.max()) < self.oldest:
            return EpochAnswer(np.full(len(ids), OVERWRITTEN, np.uint8), None, self.oldest), 0
        while not self.is_gone and not self._closed.is_set():
            place, shard = next(((place, one) for place, one in enumerate(self._shards.now) if one.number == self._window.shard), (0, None))
            if shard is not None and self._patience is not None and shard.lost_since is not None:  # The buffer asks it whether it is back.
                if time.monotonic() - shard.lost_since >= self._patience:
                    break
                self._closed.wait(PAUSE_SECONDS)
                continue
            try:
                return self._asked(shard, ids), place
            except (TableChangedError, TableNotFoundError) as error:
                self._note_gone(error)
            except ServerUnavailableError:
                if self._patience is None:
                    raise
        return EpochAnswer(np.full(len(ids), LOST, np.uint8), None, self.oldest), 0

    def _asked(self, shard: Shard | None, ids: Slots) -> EpochAnswer:
        if shard is None:
            raise TableChangedError(f"shard {self._window.shard} is no shard of the buffer any more")
        answer = shard.asked(lambda table: table.epoch_rows(ids, self._window, self._plan.query))
        self.oldest = max(self.oldest, answer.oldest)
        return answer

    def _note_gone(self, error: TableChangedError | TableNotFoundError) -> None:
        """Notes that the rows do not come any more.

        Raises:
            TableChangedError: the buffer does not go on without them.
        """
        if self._patience is None:
            raise TableChangedError(f"shard {self._window.shard}: {error}") from None
        if not self.is_gone:
            log.warning("the rows of shard %d that epochs did not read yet are lost: %s", self._window.shard, error)
        self.is_gone = True


class _Asked(NamedTuple):
    """A part that was asked for.

    Attributes:
        start: Its first place.
        ids: The rows that are to come, as their shards number them.
        shards: The numbers of their shards.
        answers: Some of the places each, counted from the first one, with what their shard says of them.
    """

    start: int
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
                given.append(_Given(places[come_of(answer.outcomes)], answer.batch, int(self.shards[places[0]]), shard_place))
        return Places(self.start, self.ids, self.shards, outcomes, given)


class ReadAhead:
    """The parts of a plan's epochs, in turn, read ahead by threads.

    Args:
        shards: The buffer's shards.
        plan: Which rows come.
        place: Where it begins.
        patience: As in `WindowRows`.
    """

    def __init__(self, shards: ShardSet, plan: ShardedPlan, place: ShardedPlace, patience: float | None) -> None:
        self._plan, self._epoch, self._position = plan, place.epoch, place.position
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
        self._ask()
        found = asked.places()
        self._places_of_one = max(1.0, len(found.outcomes) / max(1, int(np.count_nonzero(found.comes))))
        return found

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
        size = self._plan.query.batch_size
        return min(PLACES, int(1.1 * size * self._places_of_one) + FEW_PLACES) if self._plan.of_steps else size

    def _asked(self, stop: int) -> _Asked:
        numbers, ids = self._plan.rows_at(self._epoch, self._position, stop)
        asked = _Asked(self._position, ids, self._numbers[numbers], [])
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            for some in (mine[start : start + MOST_IDS] for start in range(0, len(mine), MOST_IDS)):
                asked.answers.append((some, self._callers.call(self.windows[number].at, ids[some])))
        return asked

    def close(self) -> None:
        """Asks for nothing more. Who waits gets None."""
        with self._closing:
            self._closed.set()
            if not self._end.done():
                self._end.set_result(None)
            self._callers.close()
