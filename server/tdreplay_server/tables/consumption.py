"""Rows that leave when they were drawn often enough, and the leases of batches that are on their way to learners."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds, Slots, slot_ranges
from tdreplay_server.tables.limiters import Supply
from tdreplay_server.tables.samplers import Draw, Sampler

__all__ = ["Consumption", "TooFewDrawsError"]

TIMES_SAMPLED = SlotColumn("times_sampled", np.uint32)
"""How often the row of a slot was taken."""

SCANNED = 4096
"""So many rows are looked at together, in search of the first one that did not leave."""

Counts = npt.NDArray[np.uint32]


class TooFewDrawsError(Exception):
    """The rows cannot be drawn as often as a batch needs. Nothing was drawn. Who waits until there are more rows may try again."""


class Consumption:
    """Draws each row `max_times_sampled` times at most.

    A draw *leases* its rows. When a learner has taken the batch, its rows count as drawn. A batch that is given back leaves no trace: its rows can be
    drawn again, where the order of the sampler has them. A row that was taken `max_times_sampled` times has left: it is never drawn again. When all
    rows before it have left too, it need not stay in the ring (`front`).

    How often a row was taken is kept. Leases are not: a restart gives all of them back.

    It hears of the rows what the sampler hears, after it. `draw`, `taken`, `give_back` and `front` come under the table's shared lock, from several
    threads.

    Args:
        sampler: Chooses the rows.
        max_times_sampled: At least 1.
    """

    columns: Sequence[SlotColumn] = (TIMES_SAMPLED,)
    values: Sequence[StateValue] = ()

    def __init__(self, sampler: Sampler, max_times_sampled: int) -> None:
        self._sampler, self._most = sampler, max_times_sampled
        self._mutex = threading.Lock()
        self._moment = -1
        self._start(Ring(1), np.zeros(1, np.uint32))

    def _start(self, ring: Ring, times: Counts) -> None:
        self._times = times
        self._buffer_size = ring.buffer_size
        # Of the row of each slot: how many draws are left that are not leased, and how many are leased.
        self._left, self._leases = np.zeros(len(times), np.uint32), np.zeros(len(times), np.uint32)
        self._oldest = self._end = ring.write_count
        self._size = self._draws = self._leased = 0
        self._moment += 1
        self._first_moment, self._highest = self._moment, ring.write_count
        self._cuts: list[tuple[int, int]] = []  # From this moment on, the ids from this one on are other rows.

    # -- what the table holds -----------------------------------------------------------------------------------------------------------------

    @property
    def moment(self) -> int:
        """What the ids of a draw mean: to be read with `draw`, under the same lock, and to be given to `taken` and `give_back`.

        A rewind and a reset change it, because later rows may get the ids of earlier ones.
        """
        return self._moment

    @property
    def size(self) -> int:
        """The rows that are there: live, and not taken as often as a row may be."""
        return self._size

    @property
    def available(self) -> int:
        """How often the rows can be drawn now, together."""
        return self._draws - self._leased

    @property
    def leased(self) -> int:
        """The rows of batches that were drawn, and neither taken nor given back. Rows that were evicted meanwhile are among them."""
        return self._leased

    def supply(self, ring: Ring) -> Supply:
        """What the table, with this ring, has to give."""
        return Supply(ring.insert_count, self._size, ring.buffer_size - ring.size, self._draws)

    # -- which rows are live ------------------------------------------------------------------------------------------------------------------

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Goes on with how often each row was taken."""
        with self._mutex:
            self._start(ring, state.columns[TIMES_SAMPLED.name])

    def emptied(self, ring: Ring) -> None:
        """Forgets all rows and leases."""
        with self._mutex:
            self._start(ring, np.zeros(1, np.uint32))

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Nobody took these rows yet."""
        for slots in self._slots(ids):
            self._times[slots] = 0

    def inserted(self, ids: range) -> None:
        """The rows can be drawn as often as they were not taken yet."""
        with self._mutex:
            if self._oldest == self._end:
                self._oldest = self._end = ids.start
            ids = range(max(ids.start, self._end), ids.stop)
            if ids:
                self._note_reuse(ids.start)
                self._end = self._highest = ids.stop
            for slots in self._slots(ids):
                self._begin(slots)

    def _note_reuse(self, row_id: int) -> None:
        """From this id on, a batch that was drawn before has other rows than the next ones, if a rewind made them get the same ids."""
        if row_id < self._highest:
            self._moment += 1
            void = [cut for cut in self._cuts if cut[1] <= self._oldest][-1:]
            self._cuts = [*void, *(cut for cut in self._cuts if self._oldest < cut[1] < row_id), (self._moment, row_id)]

    def _begin(self, slots: slice) -> None:
        left = self._most - np.minimum(self._times[slots], self._most)
        self._left[slots], self._leases[slots] = left, 0
        self._draws += int(left.sum(dtype=np.int64))
        gone = np.flatnonzero(left == 0)
        self._size += len(left) - len(gone)
        if len(gone):
            self._sampler.withhold(self._ids(gone + slots.start))

    def evicted(self, ids: range) -> None:
        """The draws of these rows are lost. Leases of them stay until the batches are taken or given back, and count for no row then."""
        with self._mutex:
            ids = range(max(ids.start, self._oldest), min(ids.stop, self._end))
            for slots in self._slots(ids):
                self._end_rows(slots)
            if ids and ids.start == self._oldest:
                self._oldest = ids.stop
            elif ids:
                self._end = ids.start

    def _end_rows(self, slots: slice) -> None:
        self._size -= int(np.count_nonzero(self._left[slots] | self._leases[slots]))
        self._draws -= int(self._left[slots].sum(dtype=np.int64))
        self._left[slots] = self._leases[slots] = 0

    def _slots(self, ids: range) -> Iterator[slice]:
        """The slots of rows, of which the last ones have slots."""
        rows = min(len(ids), self._buffer_size)
        return (slice(*bounds) for bounds in (slot_ranges(ids.stop - rows, rows, self._buffer_size) if rows > 0 else ()))

    def _ids(self, slots: Slots) -> RowIds:
        newest = self._end - 1
        return newest - (newest - slots) % self._buffer_size

    # -- drawing ------------------------------------------------------------------------------------------------------------------------------

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`, but each row is drawn as often as it can be, at most. The rows are leased.

        It is as if the rows were drawn one after the other, each among those that can still be drawn. The batches come one after the other too.

        Raises:
            TooFewDrawsError: there are not so many draws left. Nothing was drawn.
        """
        with self._mutex:
            if self.available < rows * len(generators):
                raise TooFewDrawsError(f"{len(generators)} batches take {rows} rows each, {self.available} are there")
            parts: list[Draw] = []
            try:
                for generator in generators:
                    self._draw_batch(rows, generator, ring, parts)
            except BaseException:
                self._return([part.ids for part in parts])
                raise
        return _joined(parts)

    def _draw_batch(self, rows: int, generator: np.random.Generator, ring: Ring, parts: list[Draw]) -> None:
        """Draws a batch, in parts: what a part has of rows that could not be drawn so often is drawn anew, when these rows are withheld."""
        while rows:
            draw = self._sampler.draw(rows, (generator,), ring)
            slots, times = _counted(draw.ids % self._buffer_size)
            if (times > self._left[slots]).any():
                draw = _some(draw, self._allowed(draw.ids))
                slots, times = _counted(draw.ids % self._buffer_size)
            self._lease(slots, times)
            parts.append(draw)
            rows -= len(draw.ids)

    def _allowed(self, ids: RowIds) -> Slots:
        """The places, in order, of the ids that can be drawn if they are drawn one after the other."""
        slots = ids % self._buffer_size
        order = np.argsort(slots, kind="stable")
        in_order = slots[order]
        begins = np.flatnonzero(np.diff(in_order, prepend=-1))
        times_before = np.arange(len(ids)) - np.repeat(begins, np.diff(begins, append=len(ids)))
        return np.sort(order[times_before < self._left[in_order]])

    def _lease(self, slots: Slots, times: Counts) -> None:
        self._left[slots] -= times
        self._leases[slots] += times
        self._leased += int(times.sum(dtype=np.int64))
        used = slots[self._left[slots] == 0]
        if len(used):
            self._sampler.withhold(self._ids(used))

    # -- leases -------------------------------------------------------------------------------------------------------------------------------

    def taken(self, ids: RowIds, moment: int) -> None:
        """A learner took these rows of batches that were drawn at `moment`. They count as drawn."""
        with self._mutex:
            slots, times = self._end_leases(ids, moment)
            self._times[slots] += times
            self._size -= int(np.count_nonzero((self._left[slots] | self._leases[slots]) == 0))

    def give_back(self, ids: RowIds, moment: int) -> None:
        """These rows of batches that were drawn at `moment` were not taken, and will not be. They can be drawn again."""
        with self._mutex:
            self._offer(*self._end_leases(ids, moment))

    def _return(self, parts: Sequence[RowIds]) -> None:
        for ids in parts:
            self._offer(*self._end_leases(ids, self._moment))

    def _offer(self, slots: Slots, times: Counts) -> None:
        used = slots[self._left[slots] == 0]
        self._left[slots] += times
        self._draws += int(times.sum(dtype=np.int64))
        if len(used):
            self._sampler.offer(self._ids(used))

    def _end_leases(self, ids: RowIds, moment: int) -> tuple[Slots, Counts]:
        """The slots of those of the leased rows that are live still, and how often each was leased. They are not leased any more."""
        if moment < self._first_moment:  # Before a reset.
            ids = ids[:0]
        self._leased -= len(ids)
        self._draws -= len(ids)
        end = min((cut for when, cut in self._cuts if when > moment), default=self._end)
        slots, times = _counted(ids[(ids >= self._oldest) & (ids < min(end, self._end))] % self._buffer_size)
        times = np.minimum(times, self._leases[slots])
        self._leases[slots] -= times
        return slots, times

    def front(self, ring: Ring) -> int:
        """The id of the first row of `ring` that has not left; its `write_count`, if all have."""
        row_id = ring.oldest
        while row_id < ring.write_count:
            slots = np.arange(row_id, min(row_id + SCANNED, ring.write_count)) % self._buffer_size
            stays = np.flatnonzero(self._left[slots] | self._leases[slots])
            if len(stays):
                return row_id + int(stays[0])
            row_id += len(slots)
        return row_id


def _counted(slots: Slots) -> tuple[Slots, Counts]:
    """Each slot once, in ascending order, and how often it comes."""
    in_order = np.sort(slots)
    first = np.ones(len(slots), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=first[1:])
    begins = np.flatnonzero(first)
    ends = np.empty_like(begins)
    ends[:-1], ends[-1:] = begins[1:], len(slots)
    return in_order[begins], (ends - begins).astype(np.uint32)


def _some(draw: Draw, places: Slots) -> Draw:
    """What a draw has at some places."""
    probabilities = None if draw.probabilities is None else draw.probabilities[places]
    priorities = None if draw.priorities is None else draw.priorities[places]
    return draw._replace(ids=draw.ids[places], probabilities=probabilities, priorities=priorities)


def _joined(parts: Sequence[Draw]) -> Draw:
    """Draws as one. Size and mass are the first one's."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Draw(
        np.concatenate([part.ids for part in parts]),
        None if first.probabilities is None else np.concatenate([part.probabilities for part in parts if part.probabilities is not None]),
        None if first.priorities is None else np.concatenate([part.priorities for part in parts if part.priorities is not None]),
        first.size,
        min(part.min_probability for part in parts),
        first.mass,
    )
