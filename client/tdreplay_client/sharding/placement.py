"""Which shard gets which rows. No thread, socket, lock or clock is in here.

The buffer is one ring of slots, those of `slots`. The next row goes to the shard whose next slot comes first in that ring, so that the rows of a
single client fill the whole as they would fill a buffer that is no shard, also where the shards have unequal parts of it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.state import State

__all__ = ["FillLevel", "RingPlacement", "WriterPlacement", "hashed", "level_of", "next_slot"]

Numbers = npt.NDArray[np.int64]
WHOLE_PART = 16
"""An insert goes to one shard as a whole where it has at most this part of the smallest shard's capacity: it takes one call."""
BEHIND_PART = 8
"""A shard is behind where more than this part of the ring lies between it and the others."""
NEAR_TURNS = 0.6
"""Shards that are filled in turn are at most half a turn of the ring from their middle."""


class FillLevel(NamedTuple):
    """How far a shard is filled, as it says itself.

    Attributes:
        capacity: In rows, at least 1.
        size: The rows that are stored.
        pointer: The slot of its next row.
        write_count: The rows that it ever stored.
        generation_id: Of its table.
        left_out: The row ids that it never gave to a row: a reset leaves some out. Below 0: it went back, and gave some again.
    """

    capacity: int
    size: int
    pointer: int
    write_count: int
    generation_id: str = ""
    left_out: int = 0


@dataclass
class _Fill:
    """How far a shard is filled, as it is reckoned: `offset` + `known` + `pending` is the place of its next row, counted on over the laps."""

    place: int
    capacity: int
    generation_id: str
    offset: int
    known: int
    pending: int = 0
    jumped: bool = False

    @property
    def next(self) -> int:
        return self.offset + self.known + self.pending

    @property
    def is_full(self) -> bool:
        return self.next >= self.capacity

    @property
    def key(self) -> tuple[int, int, int]:
        """The place of its next slot in the ring."""
        return (*divmod(self.next, self.capacity), self.place)


class RingPlacement:
    """Says which shards get the next rows. It begins with what the shards say of themselves, and goes on with what they are given.

    One thread at a time may use it.
    """

    def __init__(self) -> None:
        self._fills: dict[int, _Fill] = {}
        self._counts: Counter[int] = Counter()  # Of each capacity, how many shards have it.
        self._behind: set[int] = set()
        self._turn = False  # Whether it is the turn of those that are behind.

    def learn(self, levels: Mapping[int, FillLevel], numbers: Sequence[int]) -> None:
        """Takes in what some shards say of themselves, by their numbers, while rows are on their way.

        `numbers` are those of all shards, in order. What others inserted is counted. One that was emptied, or is new, is filled first: it gets every
        second insert until it has caught up with the others.
        """
        self._fills = {number: fill for number, fill in self._fills.items() if number in numbers}
        first = not self._fills
        for number, level in levels.items():
            if number in numbers:
                self._learn_one(number, level)
        for place, number in enumerate(numbers):
            if number in self._fills:
                self._fills[number].place = place
        self._counts = Counter(fill.capacity for fill in self._fills.values())
        if first:
            self._close_ranks()
        self._align()

    def _learn_one(self, number: int, level: FillLevel) -> None:
        fill = self._fills.get(number)
        if fill is not None and fill.generation_id == level.generation_id and fill.capacity == level.capacity:
            said_before = level.write_count < fill.known and level.write_count + fill.pending >= fill.known
            if said_before or (fill.offset + level.write_count) % level.capacity == level.pointer:
                fill.known = max(fill.known, level.write_count)
                return
        is_full = level.size >= level.capacity
        begin = level.capacity + level.pointer if is_full else level.size
        jumped = level.left_out != 0
        self._fills[number] = _Fill(0, level.capacity, level.generation_id, begin - level.write_count, level.write_count, jumped=jumped)

    def place(self, rows: int, among: Collection[int]) -> list[tuple[int, Numbers | None]]:
        """Where so many rows go: the numbers of shards, each with the places of its rows among these. None: all of them.

        `among` are those that can be written to, one at least, all of which were learnt. They count as being on their way until `settle`.
        """
        if rows * WHOLE_PART <= max(WHOLE_PART, min(self._fills[number].capacity for number in among)) or len(among) == 1:
            return [(self.place_whole(rows, among), None)]
        behind, others = self._divided(among)
        if not behind or not others:
            return [*self._striped(np.arange(rows), among)]
        return [*self._striped(np.arange(0, rows, 2), behind), *self._striped(np.arange(1, rows, 2), others)]

    def place_within(self, rows: int, rooms: Mapping[int, int]) -> list[tuple[int, Numbers]]:
        """The same for the first ones of so many rows, where each shard takes no more than it has room for, by number. Empty: none has any."""
        among = [number for number, room in rooms.items() if room > 0]
        whole = [number for number in among if rooms[number] >= rows]
        if whole and rows * WHOLE_PART <= max(WHOLE_PART, min(self._fills[number].capacity for number in whole)):
            return [(self.place_whole(rows, whole), np.arange(rows))]
        return self._striped(np.arange(rows), among, rooms) if among else []

    def pending(self, number: int) -> int:
        """How many rows are on their way to a shard."""
        return self._fills[number].pending if number in self._fills else 0

    def place_whole(self, rows: int, among: Collection[int]) -> int:
        """The number of the one shard that gets all of so many rows; the rest is as in `place`."""
        number = min(self._next_among(among), key=lambda one: self._fills[one].key)
        self._fills[number].pending += rows
        return number

    def _striped(self, rows: Numbers, among: Collection[int], rooms: Mapping[int, int] | None = None) -> list[tuple[int, Numbers]]:
        """The k-th of these rows goes to the shard of the k-th of the slots that come next in the ring, where it has room."""
        chosen = sorted(among, key=lambda one: self._fills[one].place)
        fills = [self._fills[number] for number in chosen]
        largest, count = max(fill.capacity for fill in fills), len(fills)
        most = [len(rows) if rooms is None else min(len(rows), rooms[number]) for number in chosen]
        slots = [np.arange(fill.next, fill.next + part) for fill, part in zip(fills, most, strict=True)]
        laps = [((slot // fill.capacity) * largest + slot % fill.capacity) * count for fill, slot in zip(fills, slots, strict=True)]
        keys = np.concatenate([lap + shard for shard, lap in enumerate(laps)])  # By lap, then by slot, then by place.
        order = np.sort(keys, kind="stable")[: len(rows)] % count  # Each shard's are in order already: they are merged.
        parts: list[tuple[int, Numbers]] = []
        for shard, (number, fill) in enumerate(zip(chosen, fills, strict=True)):
            places = rows[: len(order)][order == shard]
            fill.pending += len(places)
            parts += [(number, places)] if len(places) else []
        return parts

    def settle(self, number: int, rows: int, write_count: int | None = None) -> None:
        """Notes that rows are on their way no more; `write_count` is that of the shard behind them, where they are stored."""
        fill = self._fills.get(number)
        if fill is not None:
            fill.pending = max(0, fill.pending - rows)
            fill.known = max(fill.known, 0 if write_count is None else write_count)

    def fullness(self, number: int) -> float:
        """How full a shard is, from 0 to 1; 1: it is full, or not known."""
        fill = self._fills.get(number)
        return 1.0 if fill is None else min(1.0, fill.next / fill.capacity)

    def knows(self, numbers: Iterable[int]) -> bool:
        """Whether all of these were learnt."""
        return all(number in self._fills for number in numbers)

    def forget(self) -> None:
        """Forgets all that was learnt."""
        self._fills, self._behind = {}, set()

    # -- shards that are not where the others are -----------------------------------------------------------------------------------------------

    def pointer(self, shards: int) -> int:
        """The slot of the whole that comes next, where there are so many shards. One at least was learnt."""
        _, slot, place = min(fill.key for fill in self._fills.values())
        return slot * shards + place

    def _divided(self, among: Collection[int]) -> tuple[Collection[int], Collection[int]]:
        """Those that are behind, and the others."""
        if self._behind:
            self._align()
        return self._behind.intersection(among), set(among) - self._behind

    def _next_among(self, among: Collection[int]) -> Collection[int]:
        """Those of which one comes next: where some are behind, these and the others in turn."""
        if not self._behind:
            return among
        behind, others = self._divided(among)
        self._turn = not self._turn
        return (behind if self._turn else others) if behind and others else among

    def _close_ranks(self) -> None:
        """Brings full shards into one lap, or two that touch: they do not say in which lap they are, unless their tables were never emptied.

        They are as close together as can be. So the widest gap between them lies before the first.
        """
        full = sorted((fill for fill in self._fills.values() if fill.is_full), key=self._turns)
        if len(full) < max(2, len(self._fills)):
            return
        offsets = [fill.offset for fill in full]
        if all(fill.offset % fill.capacity == 0 and not fill.jumped for fill in full):
            for fill in full:
                fill.offset = 0
            if max(map(self._turns, full)) - min(map(self._turns, full)) <= 1:
                return
        for fill, offset in zip(full, offsets, strict=True):
            fill.offset = offset
        turns = [self._turns(fill) for fill in full]
        gaps = [turns[0] + 1 - turns[-1], *(after - before for before, after in pairwise(turns))]
        for fill in full[: gaps.index(max(gaps))]:
            fill.offset += fill.capacity

    def _align(self) -> None:
        """Puts full shards that are laps away where they are closest to the others, and finds those that are behind.

        Where shards are filled in turn, no shard's next slot lies before another one's last. Of rows on their way nobody knows whether a shard
        counted them already: while they are many, no shard is moved for them.
        """
        self._behind = set()
        if not self._fills:
            return
        full = [fill for fill in self._fills.values() if fill.is_full]
        nexts, lasts = (median(self._turns(fill, back) for fill in full or self._fills.values()) for back in (0, 1))
        unsure = max(fill.pending / fill.capacity for fill in self._fills.values())
        for fill in full if unsure <= 1 / BEHIND_PART else ():
            late, early = lasts - self._turns(fill), self._turns(fill, 1) - nexts
            if max(late, early) > NEAR_TURNS + unsure:
                fill.offset += fill.capacity * round(late if late > early else -early)
        self._behind = {number for number, fill in self._fills.items() if lasts - self._turns(fill) > 1 / BEHIND_PART}

    def _turns(self, fill: _Fill, back: int = 0) -> float:
        """How often the ring went round until it comes to the next slot of a shard, or to one so many slots before."""
        lap, slot = divmod(fill.next - back, fill.capacity)
        before = sum(shards * min(slot, capacity) for capacity, shards in self._counts.items())
        beside = min(fill.place, sum(shards for capacity, shards in self._counts.items() if capacity > slot))
        return lap + (before + beside) / sum(capacity * shards for capacity, shards in self._counts.items())


def level_of(state: State, generation_id: str = "") -> FillLevel:
    """How far a shard is filled whose table is in this state."""
    return FillLevel(state.buffer_size, state.size, state.pointer, state.write_count, generation_id, state.write_count - state.insert_count)


def next_slot(states: Mapping[int, State], shards: int) -> int:
    """The slot of the whole that comes next, by the states of shards, by their places among so many."""
    ring = RingPlacement()
    ring.learn({place: level_of(state) for place, state in states.items()}, range(shards))
    return ring.pointer(shards)


class WriterPlacement:
    """Says on which shard a writer is opened: one that has the fewest of this buffer's, and of two such ones the less full.

    The two are random: many processes that open one writer each do not all choose the same. One thread at a time may use it.
    """

    def __init__(self) -> None:
        self._writers: Counter[int] = Counter()
        self._random = random.SystemRandom()  # Not the interpreter's generator: actors that seed that alike would choose alike.

    def open(self, among: Sequence[int], fullness: Callable[[int], float]) -> int:
        """The number of the shard for a writer, one of `among`, which counts there until `close`."""
        fewest = min(self._writers[number] for number in among)
        those = [number for number in among if self._writers[number] == fewest]
        number = min(self._random.sample(those, min(2, len(those))), key=fullness)
        self.note(number)
        return number

    def note(self, number: int) -> None:
        """Notes that a writer is on the shard, until `close`."""
        self._writers[number] += 1

    def close(self, number: int) -> None:
        """Notes that a writer left the shard."""
        self._writers[number] -= 1


def hashed(key: object, numbers: Iterable[int]) -> int:
    """The one of these numbers of shards that a key goes to: the same in each process. With another set of them few keys go elsewhere.

    This is highest random weight hashing: Thaler and Ravishankar, A Name-Based Mapping Scheme for Rendezvous, 1996.
    """
    return max(numbers, key=lambda number: hashlib.blake2b(f"{number} {key}".encode(), digest_size=8).digest())
