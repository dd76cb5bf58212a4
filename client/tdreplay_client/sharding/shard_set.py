"""The shards of a buffer: calls to all of them at once, those that are lost, and those that come and go."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from tdreplay.errors import ClosedError, InvalidArgumentError, RateLimitedError, ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay.processes import Owner, keep_in_forks
from tdreplay.rate_limiters import MinSize, SamplesPerInsert, Unlimited
from tdreplay.table_config import TableConfig
from tdreplay_client.sharding.callers import Callers
from tdreplay_client.sharding.directory import Directory, FixedDirectory, check_places
from tdreplay_client.sharding.emptied import await_table
from tdreplay_client.sharding.members import Member, check_identities, check_members, check_settings
from tdreplay_client.sharding.opening import Opening, member_of
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard, ShardPlace
from tdreplay_client.sharding.shard_table import ShardTable
from tdreplay_client.sharding.shares import used_places, whole_config
from tdreplay_client.sharding.watch import Watch

__all__ = ["Directory", "FixedDirectory", "ShardSet", "check_places", "in_places", "none_there", "too_few"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")
MOST_THREADS = 64
"""The most shards that are asked at once."""
DIRECTORY_SECONDS = 1.0
"""How often a directory is asked whether shards came or went."""
PAUSE_SECONDS = 0.05
"""How long is waited before shards of which none answered are asked again."""
RETIREMENT_SECONDS = 60.0
"""How long the connections to a shard that was removed stay open, for calls that are on their way."""
LEAVING_SECONDS = 5.0
"""How long a shard that was removed is asked still whether it stored rows. Its server goes on for a moment: see `DirectoryActor`."""


class ShardSet:
    """The shards that a buffer uses now. Which they are changes when a cluster grows or shrinks.

    A table of fewer rows than shards uses the first ones alone: see `shares`. They are all that the set has then, but for `everywhere`.

    Attributes:
        owner: The process that may use them.
        everywhere: All shards by place, those that are not used among them.
        version: Rises with each such change. Whoever uses shards for longer than a call looks whether it is still the same.
        removed: The numbers of shards that were used, and are not any more.
        times_emptied: How often this buffer reset, rewound or dropped the tables: what was read of them before does not hold any more.

    Args:
        directory: Says where they are.
        opening: How they are opened. Nothing is connected.
        places: Where they are, if that is known: the directory is not asked at first.
        used: How many of these are used; None: those that the capacity says.
    """

    def __init__(self, directory: Directory, opening: Opening, places: Sequence[ShardPlace] | None = None, used: int | None = None) -> None:
        self._directory, self._opening = directory, opening
        self._callers = Callers(MOST_THREADS)
        self._watch = Watch(self)
        self._changing, self._closed = threading.RLock(), threading.Event()
        self._members: dict[int, Member] = {}
        self._retired: list[tuple[Shard, float]] = []
        self.version, self.removed, self.times_emptied = 0, set[int](), 0
        found = check_places(directory.places() if places is None else places)
        self._parts = len(found)
        self.everywhere: tuple[Shard, ...] = tuple(self._opened(place, position) for position, place in enumerate(found))
        self._shards = self.everywhere[: used or opening.request.buffer_size]
        self.owner = Owner(f"the buffer over the shards at {found[0].address} and others", "gRPC does not survive a fork, so start it by spawn")
        keep_in_forks(self)
        self._next_look = time.monotonic() + DIRECTORY_SECONDS
        if self._can_change:
            self._watch.wake()

    def _opened(self, place: ShardPlace, position: int) -> Shard:
        shard = self._opening.shard(place, position, self._parts)
        shard.when_lost, shard.when_emptied = self._watch.wake, partial(await_table, weakref.ref(self), self._opening.timeout)
        return shard

    @property
    def _can_change(self) -> bool:
        return not isinstance(self._directory, FixedDirectory)

    # -- which they are -----------------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, place: int) -> Shard:
        return self._shards[place]

    @property
    def now(self) -> tuple[Shard, ...]:
        """Those that are used by place, which do not change while they are used."""
        return self._shards

    @property
    def places(self) -> tuple[ShardPlace, ...]:
        """Where all of them are."""
        return tuple(shard.place for shard in self.everywhere)

    @property
    def directory(self) -> Directory:
        """What says where they are."""
        return self._directory

    @property
    def timeout(self) -> float:
        """Seconds that a call waits."""
        return self._opening.timeout

    @property
    def goes_on(self) -> bool:
        """Whether the buffer goes on without those that are lost."""
        return self._opening.goes_on

    def place_of(self, number: int) -> int | None:
        """The place among the shards of the one with this number; None: there is none."""
        return next((place for place, shard in enumerate(self._shards) if shard.number == number), None)

    def leaving(self, number: int) -> Shard | None:
        """The shard with this number that was removed a moment ago, and may answer still; None: there is none."""
        since = time.monotonic() - LEAVING_SECONDS + RETIREMENT_SECONDS
        return next((shard for shard, until in self._retired if shard.number == number and until > since), None)

    # -- calls to them ------------------------------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Passes where calls can be made.

        Raises:
            ForkedError, ClosedError: where they cannot.
        """
        self.owner.check()
        if self._closed.is_set():
            raise ClosedError("the buffer is closed")

    def each(self, call: Callable[[Shard], T], shards: Iterable[Shard] | None = None) -> list[T]:
        """What a call gives for each of the shards, all of which are asked at once, in their order.

        Raises:
            ReplayError: what the first of them that failed raised, after all have answered.
        """
        self.check_open()
        chosen = list(self._shards if shards is None else shards)
        others = [self._callers.call(call, shard) for shard in chosen[1:]]
        found = [*(_called(call, shard) for shard in chosen[:1]), *others]
        errors = [error for error in (one.exception() for one in found) if error is not None]
        if errors:
            raise errors[0]
        return [one.result() for one in found]

    def started(self, call: Callable[[Shard], T], shards: Iterable[Shard]) -> list[Future[T]]:
        """The same without waiting for it: what will be its results."""
        self.check_open()
        return [self._callers.call(call, shard) for shard in shards]

    def tried(self, call: Callable[[Shard], T], shards: Iterable[Shard] | None = None) -> list[T | ServerUnavailableError]:
        """As `each`, but where a shard is lost its error stands in place of what it would give."""

        def safe(shard: Shard) -> T | ServerUnavailableError:
            try:
                return call(shard)
            except ServerUnavailableError as error:
                return error

        return self.each(safe, shards)

    def on_those_there(self, call: Callable[[Shard], T], shards: Sequence[Shard] | None = None) -> list[tuple[Shard, T]]:
        """What a call gives for each shard that answers, of all that are used or of these. Where none does, one is waited for.

        Raises:
            ServerUnavailableError: none of them does within the buffer's `timeout`, or one does not, and the buffer does not go on without it.
            TableNotFoundError: the table is on none of them.
        """
        shards, until = self.now if shards is None else shards, time.monotonic() + self._opening.timeout
        if not self.goes_on:
            return list(zip(shards, self.each(call, shards), strict=True))
        asked = [shard for shard in shards if shard.is_there] or shards
        while True:
            found = list(zip(asked, self.tried(call, asked), strict=True))
            there = [(shard, answer) for shard, answer in found if not isinstance(answer, ServerUnavailableError)]
            if there:
                return there
            error, all_asked = none_there(answer for _, answer in found), len(asked) == len(shards)
            if all_asked and (isinstance(error, TableNotFoundError) or time.monotonic() >= until):
                raise error
            asked = shards  # One that was lost may be back.
            self._closed.wait(PAUSE_SECONDS if all_asked else 0)

    def agree(self) -> None:
        """Connects to all shards, and checks that they are one buffer. Those that are lost are left out where the buffer goes on without them.

        Raises:
            ServerUnavailableError: none is there, or one is not.
        """
        if self._opening.request.buffer_size is not None:
            self._look_before()
        found = self.on_those_there(lambda shard: member_of(shard, shard.asked(ShardTable.connect)), self.everywhere)
        check_members([member for _, member in found])
        self._note_all(found)

    def learn(self) -> None:
        """Asks all shards what they are, and uses those from now on that are used: others than before, where the capacity changed."""
        self._note_all(self.on_those_there(lambda shard: member_of(shard, shard.asked(ShardTable.answer)), self.everywhere))

    def _note_all(self, found: Iterable[tuple[Shard, Member]]) -> None:
        for shard, member in found:
            self._note(shard, member)
        self._use(self.everywhere)

    def _look_before(self) -> None:
        """Passes where the table can be made on all shards: what one of them refuses is then made on none."""
        asked = self.on_those_there(lambda shard: shard.asked(ShardTable.look_before), self.everywhere)
        seen = {shard: member_of(shard, answer) for shard, (answer, _) in asked}
        check_identities([*seen.values()])
        tables = {self.everywhere.index(shard): seen[shard] for shard, (_, is_there) in asked if is_there}
        if tables:
            check_members([*tables.values()])
            check_settings(tables, self._opening.request, self._parts)

    def least_rows(self, there: int) -> int:
        """How many rows have to be on so many of the shards before one is drawn, by the rate limiter of the whole buffer."""
        limiter = self.whole.rate_limiter if self.config.rate_limiter != Unlimited() else None
        return limiter.min_size * there // len(self) if isinstance(limiter, (MinSize, SamplesPerInsert)) else 0

    @property
    def whole(self) -> TableConfig:
        """What the whole buffer is made with, as far as its shards are known."""
        if not self._members:
            self.learn()
        return whole_config([self._members[shard.number].description.config for shard in self._shards if shard.number in self._members])

    def check_window(self, steps: int) -> None:
        """Passes where so many steps of an episode can be on one shard. One shard alone says it itself.

        Raises:
            InvalidArgumentError: they cannot.
        """
        if len(self._shards) > 1 and self._members:
            least = min(self._members[shard.number].description.buffer_size for shard in self._shards if shard.number in self._members)
            if steps > least:
                raise InvalidArgumentError(
                    f"a window of {steps} steps is longer than a shard, which has all of an episode: its buffer_size is {least}"
                )

    @property
    def config(self) -> TableConfig:
        """What the table of a shard is made with, as one of them said. A copy of a buffer asks now."""
        if not self._members:
            self.learn()
        return self._config

    def _note(self, shard: Shard, member: Member) -> None:
        self._members[shard.number] = member
        self._config = member.description.config
        shard.generation_id, shard.given = member.description.generation_id, member.description.write_count

    # -- those that are lost, and those that come and go ----------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Asks those that are lost whether they are back, and now and then the directory. Gives whether to look again."""
        try:
            self.check_open()
            lost = [shard for shard in self._shards if not shard.is_there]
            self.each(self._seek, lost)
            if self._can_change and time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + DIRECTORY_SECONDS
                self._renew()
            self._close_retired(time.monotonic())
        except ClosedError:
            return False
        except ReplayError as error:
            log.warning("the shards of the buffer cannot be found out: %s", error)
        return self._can_change or bool(self._retired) or any(not shard.is_there for shard in self._shards)

    def _seek(self, shard: Shard) -> None:
        """Asks a lost shard whether it is back. Where it is another table now, its rows are gone, and it has to be one of this buffer still."""
        try:
            # Where no other shard has the table any more, it was not the server that went, but the table.
            member = member_of(shard, shard.reads.look(LOSS_SECONDS, create=self.is_elsewhere(shard)))
            if member.description.generation_id != shard.generation_id:
                self._check_joins(member)
                if shard.generation_id:
                    log.warning("shard %d at %s came back without the rows that it had", shard.number, shard.place.address)
        except ClosedError:
            raise
        except ReplayError as error:
            log.debug("shard %d is still lost: %s", shard.number, error)
            return
        self._note_all([(shard, member)])
        shard.find()

    def is_elsewhere(self, shard: Shard) -> bool:
        """Whether another shard that is there has the table still."""
        return any(self._has_table(other) for other in self._shards if other.is_there and other is not shard)

    def _has_table(self, shard: Shard) -> bool:
        """Whether a shard has its table still. One that does not answer at once counts as one that has it not."""
        try:
            shard.reads.look(LOSS_SECONDS, create=False)
        except ClosedError:
            raise
        except ReplayError as error:
            log.debug("shard %d does not say that it has the table: %s", shard.number, error)
            return False
        return True

    def _check_joins(self, member: Member) -> None:
        """Passes where a shard that was not there before is one of this buffer."""
        there = {shard.number for shard in self.everywhere}
        others = [other for number, other in self._members.items() if number in there and number != member.place.number]
        check_members([*others, member])

    def _renew(self) -> None:
        """Takes up the shards that the directory names now, where it says that they are. Those that it does not name any more are used no longer."""
        with self._changing:
            places = check_places(self._directory.places())
            known = {shard.number: shard for shard in self.everywhere}
            for place in places:
                if place.number in known:
                    known[place.number].go_to(place)
            if list(self.places) == list(places):
                return
            shards = [known.get(place.number) or self._joining(place, position) for position, place in enumerate(places)]
            kept = tuple(shard for shard in shards if shard is not None)
            if kept and kept != self.everywhere:
                self._use(kept)
                log.warning("the buffer has the shards %s now", ", ".join(str(shard.number) for shard in kept))

    def _joining(self, place: ShardPlace, position: int) -> Shard | None:
        """A new shard, where it is there and is one of this buffer. Else it is tried again at the next look."""
        shard = self._opened(place, position)
        try:
            member = member_of(shard, shard.reads.look(LOSS_SECONDS, create=True))
            self._check_joins(member)
        except ReplayError as error:
            log.warning("shard %d at %s does not join the buffer: %s", place.number, place.address, error)
            shard.close()
            return None
        self._note(shard, member)
        return shard

    def _use(self, everywhere: tuple[Shard, ...]) -> None:
        """Goes on with these shards, and uses those of them that are used by what is known of their capacities."""
        with self._changing:
            sizes = {shard: self._members[shard.number].description.buffer_size for shard in everywhere if shard.number in self._members}
            used = used_places([*sizes.values()])
            unused = [shard for place, shard in enumerate(sizes) if place not in used]
            shards = tuple(shard for shard in everywhere if shard not in unused)
            if (everywhere, shards) != (self.everywhere, self._shards):
                self._change(everywhere, shards)

    def _change(self, everywhere: tuple[Shard, ...], shards: tuple[Shard, ...]) -> None:
        self._retired += [(shard, time.monotonic() + RETIREMENT_SECONDS) for shard in self.everywhere if shard not in everywhere]
        left = {shard.number for shard in self._shards if shard not in shards}
        self.everywhere, self._shards = everywhere, shards
        self.removed = (self.removed | left) - {shard.number for shard in shards}
        self.version += 1

    def _close_retired(self, now: float) -> None:
        """Closes the connections to shards that were removed, once nobody can be in the middle of a call any more."""
        over = [shard for shard, until in self._retired if until <= now]
        self._retired = [(shard, until) for shard, until in self._retired if until > now]
        for shard in over:
            shard.close()

    def close(self) -> None:
        """Closes the connections to all. Closing twice is allowed; in a fork of the process that opened them nothing happens."""
        if not self.owner.is_here:
            return
        self._closed.set()
        self._watch.close()
        for shard in self.everywhere:
            shard.close()
        self._close_retired(math.inf)
        self._callers.close()


def in_places(shards: Sequence[Shard], asked: Iterable[Shard]) -> list[Shard]:
    """Shards by their places, with those that were asked. Such as came or left meanwhile are the last ones."""
    return list(dict.fromkeys([*shards, *asked]))


def too_few(least: int, stored: int) -> RateLimitedError:
    """What is said while the whole buffer has not as many rows as its rate limiter wants."""
    return RateLimitedError(f"sampling needs {least} rows in the table, {stored} are there")


def none_there(answers: Iterable[object]) -> ReplayError:
    """The error where no shard is there, by what each of them gave."""
    errors = [answer for answer in answers if isinstance(answer, ServerUnavailableError)]
    return next((error.__cause__ for error in errors if isinstance(error.__cause__, TableNotFoundError)), errors[0])


def _called(call: Callable[[Shard], T], shard: Shard) -> Future[T]:
    """What a call in this thread gives, or its error, which is raised when the others have answered."""
    found: Future[T] = Future()
    try:
        found.set_result(call(shard))
    except Exception as error:  # noqa: BLE001 - see above.
        found.set_exception(error)
    return found
