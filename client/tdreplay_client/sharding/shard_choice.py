"""Which shards rows and writers go to, with what is known of the shards: which of them are there, and how full they are."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.description_messages import description_from_message
from tdreplay.errors import (
    DeadlineError,
    FailedPreconditionError,
    OverloadedError,
    RateLimitedError,
    ReplayError,
    ServerUnavailableError,
    TableNotFoundError,
)
from tdreplay.rate_limiters import Queue, SamplesPerInsert
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay.table_description import TableDescription
from tdreplay_client.sharding.local_shards import is_on_this_host
from tdreplay_client.sharding.placement import FillLevel, RingPlacement, WriterPlacement, hashed, level_of
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.transport.threads import start_reader

__all__ = ["ShardChoice", "ShardPart"]

log = logging.getLogger("tdreplay")
LEARN_SECONDS = 1.0
"""How often the shards are asked how full they are, while rows are inserted."""
WRITTEN_SECONDS = 0.1
"""How often, while writers come and go: their rows are not counted here. Else all that come within a second would leave out the same shards."""


class ShardPart(NamedTuple):
    """The rows of an insert that go to one shard.

    Attributes:
        number: Of the shard.
        places: Of the rows among those of the insert, ascending; None: all of them.
    """

    number: int
    places: npt.NDArray[np.int64] | None = None

    def rows(self, of: int) -> int:
        """How many of so many rows."""
        return of if self.places is None else len(self.places)


class ShardChoice:
    """Chooses shards. While rows come, it asks all shards once a second, in a thread of its own, how full they are.

    Attributes:
        rule: The same.

    Args:
        shards: The shards.
        rule: "fill", "hash" or "local"; see `ShardedReplayBuffer`.
    """

    def __init__(self, shards: ShardSet, rule: str) -> None:
        self._shards, self.rule = shards, rule
        self._ring, self._writers, self._lock = RingPlacement(), WriterPlacement(), threading.Lock()
        self._said: dict[int, TableDescription] = {}  # By the numbers of the shards that answered when they were asked last.
        self._rooms: dict[int, int | None] = {}  # The rows that their rate limiters let in; None: any number.
        self._looking = threading.Lock()
        self._asked, self._learning, self._version = -np.inf, False, -1
        self._is_outdated = False  # By rows of writers.
        self._forgotten = 0  # How often: what shards said before does not count any more.

    # -- what is known --------------------------------------------------------------------------------------------------------------------------

    def schema(self) -> Schema | None:
        """The schema of the rows, as any shard has it that answers now; None: none of them has one.

        Raises:
            ReplayError: no shard answers.
        """
        self.learn()
        return next((one.schema for one in self._descriptions() if one.schema is not None), None)

    def config(self) -> TableConfig:
        """What a shard's table was made with. Its sampler and its trajectories are those of all.

        Raises:
            ReplayError: no shard answers.
        """
        self._learn_in_time()
        return self._descriptions()[0].config

    def _descriptions(self) -> Sequence[TableDescription]:
        """What the shards said last. Where none did, one is waited for as long as the buffer's `timeout`."""
        if not self._said:
            self._shards[0].writes.answer()
            self.learn()
        if not self._said:
            raise ServerUnavailableError(f"none of the {len(self._shards)} shards says what its table is")
        return list(self._said.values())

    def has_table_elsewhere(self) -> bool:
        """Whether any shard has its table now: where one has none, that one lost its data, and the tables were not dropped."""
        self.learn()
        return bool(self._said)

    def there(self) -> Sequence[Shard]:
        """The shards that can be written to, as far as is known, in order; all that take rows where there is none: they are waited for.

        Raises:
            FailedPreconditionError: none of them takes rows.
        """
        shards = self._taking()
        return [shard for shard in shards if shard.is_there] or shards

    def _taking(self) -> Sequence[Shard]:
        shards = [shard for shard in self._shards.now if not shard.place.draining]
        if not shards:
            raise FailedPreconditionError(f"none of the {len(self._shards)} shards takes rows: they are being drained")
        return shards

    def learn(self) -> None:
        """Asks all shards how full they are. A shard whose table is not there, because it lost its data, gets it again where that can be made."""
        self._asked, self._version, self._is_outdated = time.monotonic(), self._shards.version, False
        shards, forgotten = self._shards.now, self._forgotten
        said = dict(zip(shards, self._shards.each(_looked_at, shards), strict=True))
        found = {shard.number: one.description for shard, one in said.items() if one is not None}
        with self._lock:
            if forgotten != self._forgotten:
                return
            self._said, self._rooms = found, {shard.number: one.room for shard, one in said.items() if one is not None}
            self._ring.learn({number: _level(one) for number, one in found.items()}, [shard.number for shard in shards])

    def _learn_in_time(self, seconds: float = LEARN_SECONDS) -> None:
        """Sees to it that what is known is not so old: at once where nothing is known, and else in a thread."""
        if self._version != self._shards.version or not self._said:
            self.learn()
        elif time.monotonic() - self._asked > seconds and not self._learning:
            self._learning = True
            start_reader(self._learn_aside)

    def _learn_aside(self) -> None:
        try:
            self.learn()
        except (ReplayError, RuntimeError) as error:  # Of a pool of threads that was closed: so was the buffer.
            log.debug("the shards were not asked how full they are: %s", error)
        finally:
            self._learning = False

    def forget(self) -> None:
        """Forgets what is known: the tables do not hold earlier rows any more."""
        with self._lock:
            self._said, self._forgotten = {}, self._forgotten + 1
            self._ring.forget()

    # -- rows -----------------------------------------------------------------------------------------------------------------------------------

    def place(self, rows: int) -> list[ShardPart]:
        """Where so many rows go. They count as being on their way until `settle`."""
        self._learn_in_time()
        if len(self._shards) == 1:
            return [ShardPart(self._taking()[0].number)]
        numbers = [shard.number for shard in self._near(self.there())]
        with self._lock:
            known = [number for number in numbers if self._ring.knows([number])]
            return [ShardPart(*part) for part in self._ring.place(rows, known)] if known else [ShardPart(numbers[0])]

    def place_whole(self, rows: int, avoided: int) -> int | None:
        """The number of another shard than the one to be `avoided` that gets all of so many rows, and is there; None: none is."""
        numbers = [shard.number for shard in self._near([shard for shard in self.there() if shard.is_there and shard.number != avoided])]
        with self._lock:
            known = [number for number in numbers if self._ring.knows([number])]
            return self._ring.place_whole(rows, known) if known else None

    def by_key(self, key: object) -> int:
        """The number of the shard for all that has this key, there or not."""
        return hashed(key, [shard.number for shard in self._taking()])

    def by_episode(self, episode_ids: npt.NDArray[np.int64]) -> list[ShardPart]:
        """Where steps go: those of an episode all to one shard, the same whoever asks."""
        episodes, episode_of = np.unique(episode_ids, return_inverse=True)
        shards = np.array([self.by_key(int(episode)) for episode in episodes])[episode_of.reshape(-1)]
        return [ShardPart(int(number), np.flatnonzero(shards == number)) for number in np.unique(shards)]

    def settle(self, number: int, rows: int, write_count: int | None = None) -> None:
        """Notes that rows are on their way no more; `write_count` is that of the shard behind them, where they are stored."""
        with self._lock:
            self._ring.settle(number, rows, write_count)

    # -- rows that a rate limiter may let wait --------------------------------------------------------------------------------------------------

    @property
    def may_wait(self) -> bool:
        """Whether rows may wait for draws, and shards differ in how many they let in."""
        return len(self._shards) > 1 and isinstance(self._shards.config.rate_limiter, (Queue, SamplesPerInsert))

    def place_in_room(self, rows: int) -> list[ShardPart]:
        """Where the first ones of so many rows go, which the shards let in at this moment. They count as being on their way until `settle`.

        Of other clients, whose rows come at the same time, it does not know: then a part waits at its shard.

        Raises:
            RateLimitedError: no shard has any room. The message says what they wait for, in numbers of the whole buffer.
            ReplayError: no shard answers.
        """
        with self._looking:
            before = {shard.number: self._ring.pending(shard.number) for shard in self._shards}
            self.learn()
            there = [shard.number for shard in self._near(self.there()) if shard.number in self._rooms]
            if not there:
                return [part._replace(places=np.arange(rows)) if part.places is None else part for part in self.place(rows)]
            with self._lock:
                rooms = {number: max(0, self._room(number, rows) - max(before.get(number, 0), self._ring.pending(number))) for number in there}
                parts = [ShardPart(*part) for part in self._ring.place_within(rows, rooms)]
        if not parts:
            raise RateLimitedError(self._waits_for(rows))
        return parts

    def _room(self, number: int, rows: int) -> int:
        room = self._rooms[number]
        return rows + self._ring.pending(number) if room is None else room

    def _waits_for(self, rows: int) -> str:
        limiter = self._shards.whole.rate_limiter
        if isinstance(limiter, Queue):
            return f"an insert of {rows} rows waits for room in the queue: it holds {limiter.max_size} rows, {limiter.max_size} are in it"
        drawn = sum(one.sample_count for one in self._said.values())
        ratio = limiter.samples_per_insert if isinstance(limiter, SamplesPerInsert) else 1.0
        return f"an insert of {rows} rows waits until {drawn + math.ceil(rows * ratio)} rows were drawn, {drawn} were"

    # -- writers --------------------------------------------------------------------------------------------------------------------------------

    def open_writer(self, avoided: Collection[Shard] = (), key: str = "") -> Shard:
        """The shard for a writer, which counts there until `close_writer`: of those that are there, the one that the `key` says, if there is one.

        Raises:
            ServerUnavailableError: there is none, or none but those to be `avoided`.
        """
        self._learn_in_time(WRITTEN_SECONDS if self._is_outdated else LEARN_SECONDS)
        there = [shard for shard in self.there() if shard not in avoided and (shard.is_there or not avoided)]
        those = self._near(there)
        if not those:
            raise ServerUnavailableError("there is no other shard that answers")
        numbers = [shard.number for shard in (there if key else those)]
        with self._lock:
            number = hashed(key, numbers) if key else self._writers.open(numbers, self._ring.fullness)
            if key:
                self._writers.note(number)
        return next(shard for shard in there if shard.number == number)

    def note_written(self) -> None:
        """Notes that a writer stored rows."""
        self._is_outdated = True

    def close_writer(self, shard: Shard) -> None:
        """Notes that a writer left the shard."""
        with self._lock:
            self._writers.close(shard.number)

    def _near(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Those on this host, where rows are to stay there and there are any; else all."""
        here = [shard for shard in shards if is_on_this_host(shard.place.address)] if self.rule == "local" else []
        return here or shards


class _Seen(NamedTuple):
    """What a shard says of its table, and how many rows its rate limiter lets in; None: any number."""

    description: TableDescription
    room: int | None


def _looked_at(shard: Shard) -> _Seen | None:
    """What a shard says of its table. One that does not counts as lost, and is looked for by a thread of the set of shards."""
    try:
        answer = shard.writes.look(LOSS_SECONDS, create=False)
        return _Seen(description_from_message(answer, shard.writes.table), answer.insert_room if answer.HasField("insert_room") else None)
    except (ServerUnavailableError, DeadlineError, TableNotFoundError) as error:
        shard.lose(error)
    except OverloadedError as error:
        log.debug("shard %d does not say how full it is: %s", shard.number, error)
    return None


def _level(description: TableDescription) -> FillLevel:
    return level_of(description, description.generation_id)
