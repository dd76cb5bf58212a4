"""Which live rows are steps of which episode, and the rows before and after each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tdreplay.windows import AnchorRule
from tdreplay_server.storage.ring import RowIds, Slots, slot_ranges
from tdreplay_server.tables.trajectories.episode_table import EpisodeTable, Places
from tdreplay_server.tables.trajectories.returns import Returns
from tdreplay_server.tables.trajectories.step_columns import END, FINAL, FINAL_FOLLOWS, TERMINATED, StepColumns

__all__ = ["NONE", "EpisodeIndex"]

NONE = -1
"""In place of the id of a row that is not there."""

STEP_BITS = 32
"""A key has the number of a step in so many bits, and above them the place of its episode."""

Keys = npt.NDArray[np.int64]
"""Which step of which episode a row is, in one number. Of the next step it is one more."""

SCANNED_ROWS = 100
"""So many rows are looked at in the time that it takes to follow an episode from one row to the next."""

Ordered: TypeAlias = "tuple[StepColumns, Slots, Slots]"
"""Rows, and what `StepColumns.by_episode` says of them."""

Offsets = npt.NDArray[np.int64]
"""Numbers of steps after an anchor, or before it where they are negative: shape [n, length]."""


def _parts(keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places of the episodes, and the numbers of the steps."""
    return keys >> STEP_BITS, keys & ((1 << STEP_BITS) - 1)


class EpisodeIndex:
    """Knows of each live row its episode, its number there, and the rows of the episode before and after it.

    It is made of three columns of the rows, so nothing of it is kept on the disk. It hears which rows are live, and reads them when it is asked the
    next time: `current` has to be called first, while no row is overwritten. Then all other methods may be called until the ring moves.

    Each row takes 17 bytes beside its columns, and 25 where the table has 2^32 slots or more.

    Args:
        read: (start, stop, field) -> the bytes of the field in the slots from start to stop.
        returns: Sums up the rewards of the rows that are read.
    """

    def __init__(self, read: Callable[[int, int, str], npt.NDArray[Any]], returns: Returns) -> None:
        self._read, self.returns = read, returns
        self._mutex = threading.Lock()
        self.emptied(1)

    # -- which rows are live ------------------------------------------------------------------------------------------------------------------

    def emptied(self, buffer_size: int) -> None:
        """Forgets all rows. The next ones lie in so many slots."""
        self._buffer_size = buffer_size
        self._oldest = self._end = 0
        self.returns.forget()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Knows no row. The arrays are made for the first one."""
        self.episodes = EpisodeTable()
        self.returns.begin_anew()
        self._expected: tuple[int, Ordered] | None = None  # The id of the first one of the rows that were expected, and these.
        self._known_oldest = self._known_end = 0
        self._keys: Keys = np.zeros(0, np.int64)

    def inserted(self, ids: range) -> None:
        """These rows are live from now on."""
        if self._oldest == self._end:
            self._oldest = self._end = ids.start
            self._known_end = -1  # The ids may be lower than those of the rows before: a table without rows can be rewound.
        self._end = max(self._end, ids.stop)
        self._oldest = max(self._oldest, self._end - self._buffer_size)

    def evicted(self, ids: range) -> None:
        """These rows, the oldest or the newest ones, are not live any more."""
        if ids.stop >= self._end:
            self.returns.rewound(ids.start, left=ids.start > self._oldest)
            self._end = max(min(self._end, ids.start), self._oldest)
            self._known_end = min(self._known_end, -1)  # Later rows may have the ids of these. All is read anew.
        else:
            self._oldest = max(self._oldest, ids.stop)

    @property
    def oldest(self) -> int:
        """The id of the oldest live row."""
        return self._oldest

    @property
    def end(self) -> int:
        """The id after that of the newest live row."""
        return self._end

    def current(self) -> None:
        """Reads the rows that came. To be called while none is overwritten, by any thread."""
        with self._mutex:
            if (self._known_oldest, self._known_end) == (self._oldest, self._end):
                return
            if self._known_end <= self._oldest or not len(self._keys):
                self.returns.gone(self.episodes, self.episodes.live())
                self._begin_anew()
                self._known_oldest = self._known_end = self._oldest
            self._make_room()
            try:
                self._evict(range(self._known_oldest, self._oldest))
                self._link(range(self._known_end, self._end))
            except BaseException:
                self._begin_anew()  # An interrupt (Ctrl-C) came between.
                raise
            self._known_oldest, self._known_end = self._oldest, self._end

    def _make_room(self) -> None:
        if len(self._keys) != self._buffer_size:
            delta = np.uint32 if self._buffer_size < 1 << 32 else np.uint64
            self._keys, self._kind = np.zeros(self._buffer_size, np.int64), np.zeros(self._buffer_size, np.uint8)
            # How much higher the id of the episode's next row is, and how much lower that of the one before; 0: there is none.
            self._next: npt.NDArray[Any] = np.zeros(self._buffer_size, delta)
            self._before: npt.NDArray[Any] = np.zeros(self._buffer_size, delta)

    def _evict(self, ids: range) -> None:
        if not ids:
            return
        rows, episodes = np.arange(ids.start, ids.stop), self.episodes
        slots = rows % self._buffer_size
        (places, steps), following = _parts(self._keys[slots]), self._next[slots]
        # Of several rows of an episode the last one counts: they come in order.
        episodes.evicted_row[places] = rows
        episodes.first_row[places] = rows + following
        episodes.first_step[places] = steps + 1
        episodes.headless.update(places.tolist())
        gone = places[following == 0]
        if len(gone):
            self.returns.gone(episodes, gone)
            episodes.remove(gone)

    def _link(self, ids: range) -> None:
        if not ids:
            return
        ranges = slot_ranges(ids.start, len(ids), self._buffer_size)
        rewards = self.returns.rewards.of(ranges)
        columns, order, firsts = self._expected_rows(ids) or self._read_rows(ranges)
        rows = order + ids.start
        slots = rows % self._buffer_size
        steps, kinds = columns.steps[order], columns.kinds[order]
        deltas = np.empty_like(rows)
        np.subtract(rows[1:], rows[:-1], out=deltas[1:])
        deltas[firsts] = 0
        places, known = self._placed(columns.episode_ids[order[firsts]])
        deltas[firsts[known]] = rows[firsts[known]] - self.episodes.last_row[places[known]]
        self._kind[slots], self._next[slots], self._before[slots] = kinds, 0, deltas
        self._keys[slots] = np.repeat(places.astype(np.int64) << STEP_BITS, np.diff(firsts, append=len(rows))) | steps
        linked = np.flatnonzero(deltas)
        self._next[(rows[linked] - deltas[linked]) % self._buffer_size] = deltas[linked]
        self._note_first(places[~known], rows[firsts[~known]], steps[firsts[~known]])
        ended, ends = self._note_last(places, rows, steps, kinds, firsts)
        if rewards is not None:
            self.returns.add(places, np.where(kinds & FINAL, 0.0, rewards[order]), firsts)
        self.returns.ended(ended, ends, self.episodes.last_step[ended] + 1, ids)

    def expect(self, rows: Ordered | None) -> None:
        """The next rows that come are these, if so many come: they need not be read. None: it is not known which ones come."""
        self._expected = None if rows is None else (self._end, rows)

    def _expected_rows(self, ids: range) -> Ordered | None:
        expected, self._expected = self._expected, None
        return expected[1] if expected is not None and (expected[0], len(expected[1][0].steps)) == (ids.start, len(ids)) else None

    def _read_rows(self, ranges: Sequence[tuple[int, int]]) -> Ordered:
        columns = StepColumns.read(ranges, self._read)
        return (columns, *columns.by_episode())

    def _placed(self, episode_ids: npt.NDArray[np.int64]) -> tuple[Places, npt.NDArray[np.bool_]]:
        """The places of episodes, and whether each was there before."""
        places = self.episodes.find(episode_ids.tolist())
        known = places >= 0
        if not known.all():
            new = episode_ids[~known].tolist()
            places[~known] = added = self.episodes.add(new)
            self.returns.begun(added, new, len(self.episodes.ids))
        return places, known

    def _note_first(self, places: Places, rows: RowIds, steps: npt.NDArray[np.int64]) -> None:
        self.episodes.first_row[places], self.episodes.first_step[places] = rows, steps

    def _note_last(
        self, places: Places, rows: RowIds, steps: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8], firsts: Slots
    ) -> tuple[Places, RowIds]:
        """Notes the newest rows of episodes, and how they ended: their last row tells, or the one before their final observation.

        It gives the episodes that ended with one of these rows, and the rows.
        """
        episodes, lasts = self.episodes, np.append(firsts[1:], len(rows)) - 1
        final = (kinds[lasts] & FINAL) != 0
        ends = lasts - final
        here = ends >= firsts
        episodes.last_row[places] = rows[lasts]
        episodes.last_step[places] = steps[lasts] - final
        episodes.has_final[places] |= final
        episodes.kind[places[here]] = kinds[ends[here]]
        ended = here & ((kinds[ends] & END) != 0)
        return places[ended], rows[ends[ended]]

    # -- what it knows of rows ----------------------------------------------------------------------------------------------------------------

    def slots_of(self, ids: RowIds) -> Slots:
        """The slots of live rows. A remainder of each would take longer."""
        slots = ids - self._oldest // self._buffer_size * self._buffer_size
        np.subtract(slots, self._buffer_size, out=slots, where=slots >= self._buffer_size)
        return slots

    def steps_of(self, ids: RowIds) -> npt.NDArray[np.int64]:
        """The numbers of rows in their episodes."""
        return _parts(self._keys[ids % self._buffer_size])[1]

    def places_of(self, ids: RowIds) -> Slots:
        """The places of the rows' episodes in `episodes`."""
        return _parts(self._keys[ids % self._buffer_size])[0]

    def has_before(self, ids: RowIds, steps: int) -> npt.NDArray[np.bool_]:
        """For each row whether so many steps before it are live, or as many as there ever were."""
        return self._begin_by(self.places_of(ids), self.steps_of(ids) - steps)

    def _begin_by(self, places: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For each of these episodes whether the step of that number is live, or, where the number is below 0, the first one."""
        found: npt.NDArray[np.bool_] = np.maximum(steps, 0) >= self.episodes.first_step[places]
        return found

    def are_steps(self, ids: RowIds) -> npt.NDArray[np.bool_]:
        """For each row whether it is a step, and no final observation."""
        found: npt.NDArray[np.bool_] = (self._kind[ids % self._buffer_size] & FINAL) == 0
        return found

    def are_anchors(self, ids: RowIds, rule: AnchorRule) -> npt.NDArray[np.bool_]:
        """For each live row whether it is an anchor."""
        slots, episodes = ids % self._buffer_size, self.episodes
        places, steps = _parts(self._keys[slots])
        found: npt.NDArray[np.bool_] = (self._kind[slots] & FINAL) == 0
        if rule.stride > 1:
            found &= steps % rule.stride == 0
        if rule.before:
            found &= self._begin_by(places, steps - rule.before)
        following = episodes.last_step[places] - steps  # How many steps come after it.
        kinds = episodes.kind[places]
        if rule.steps > 1:
            found &= following >= rule.steps - 1 if rule.whole else (following >= rule.steps - 1) | ((kinds & END) != 0)
        if rule.next_step:
            unfinished = ((kinds & FINAL_FOLLOWS) != 0) | ((kinds & TERMINATED) == 0)
            found &= (following >= rule.steps) | episodes.has_final[places] | ~unfinished
        return found

    def around(self, ids: RowIds, rule: AnchorRule) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each anchor how many steps before it are in its window, and how many from it on."""
        places, steps = _parts(self._keys[ids % self._buffer_size])
        following = self.episodes.last_step[places] - steps
        return np.minimum(steps, rule.before), np.minimum(following + 1, rule.steps)

    def first_rows(self, ids: RowIds, rule: AnchorRule) -> RowIds:
        """The ids of the oldest rows that anchors need."""
        if not rule.before:
            return ids
        before, _ = self.around(ids, rule)
        return self.rows_at(ids, -before[:, None])[:, 0]

    def rows_at(self, ids: RowIds, offsets: Offsets) -> RowIds:
        """The ids of the rows so many steps after live rows, final observations among them: int64 of the shape of `offsets`; -1 where none is live.

        Rows of an episode mostly lie at equal distances. So they are guessed, and looked at. Where a guess is wrong, rows are followed one by one.
        """
        slots, episodes = ids % self._buffer_size, self.episodes
        keys = self._keys[slots]
        places, steps = _parts(keys)
        newest = episodes.last_step[places] + episodes.has_final[places] - steps
        there = (offsets >= (episodes.first_step[places] - steps)[:, None]) & (offsets <= newest[:, None])
        rows = ids[:, None] + offsets * self._distances(slots)[:, None]
        live = np.minimum(np.maximum(rows, self._oldest), self._end - 1)
        right = (self._keys[self.slots_of(live)] == keys[:, None] + offsets) & (live == rows)
        wrong = np.flatnonzero((there & ~right).any(axis=1))
        if len(wrong):
            rows[wrong] = self._followed(ids[wrong], offsets[wrong])
        rows[~there] = NONE
        return rows

    def _distances(self, slots: Slots) -> npt.NDArray[np.int64]:
        """How far apart the rows of the episode lie around some rows."""
        found = self._before[slots].astype(np.int64)
        first = np.flatnonzero(found == 0)
        if len(first):
            found[first] = self._next[slots[first]]
        return found

    def _followed(self, ids: RowIds, offsets: Offsets) -> RowIds:
        """As `rows_at`, for rows that are followed one by one."""
        first, last = min(int(offsets.min()), 0), max(int(offsets.max()), 0)
        found = np.full((last - first + 1, len(ids)), NONE, np.int64)
        found[-first] = ids
        for place in range(-first - 1, -1, -1):
            found[place] = self.before(found[place + 1])
        for place in range(-first + 1, last - first + 1):
            found[place] = self.after(found[place - 1])
        rows: RowIds = found[offsets - first, np.arange(len(ids))[:, None]]
        return rows

    def after(self, ids: RowIds) -> RowIds:
        """The ids of the next rows of the episodes of some rows; -1 where there is none, and for -1."""
        deltas = self._next[ids % self._buffer_size].astype(np.int64)
        rows: RowIds = np.where((ids >= 0) & (deltas != 0), ids + deltas, NONE)
        return rows

    def before(self, ids: RowIds) -> RowIds:
        """The ids of the rows before them in their episodes; -1 where none is live, and for -1."""
        deltas = self._before[ids % self._buffer_size].astype(np.int64)
        return np.where((ids >= 0) & (deltas != 0) & (ids - deltas >= self._oldest), ids - deltas, NONE)

    # -- what changed -------------------------------------------------------------------------------------------------------------------------

    def tails(self, end: int, steps: int) -> RowIds:
        """The rows up to `steps` steps before the first rows from `end` on of their episodes. They lie below `end`."""
        if not self._oldest < end < self._end or not steps:
            return np.empty(0, np.int64)
        rows = np.arange(end, self._end)
        rows = rows - self._before[rows % self._buffer_size].astype(np.int64)
        rows = np.unique(rows[(rows < end) & (rows >= self._oldest)])
        found = [rows]
        for _ in range(steps - 1):
            rows = self.before(rows)
            rows = rows[rows >= 0]
            if not len(rows):
                break
            found.append(rows)
        return np.concatenate(found)

    def heads(self, oldest: int, steps: int) -> RowIds:
        """The first `steps` live rows of each episode of which a row from `oldest` on was evicted."""
        places = np.fromiter(self.episodes.headless, np.int32, len(self.episodes.headless))
        rows = self.episodes.first_row[places[self.episodes.evicted_row[places] >= oldest]]
        found = [rows]
        for _ in range(steps - 1):
            rows = self.after(rows)
            rows = rows[rows >= 0]
            if not len(rows):
                break
            found.append(rows)
        return np.concatenate(found)

    def rows_of(self, episode_id: int) -> RowIds:
        """The ids of the live rows of an episode, in order; none, if it is not there."""
        place = self.episodes.places.get(episode_id)
        if place is None:
            return np.empty(0, np.int64)
        first, last = int(self.episodes.first_row[place]), int(self.episodes.last_row[place])
        count = int(self.episodes.last_step[place] + self.episodes.has_final[place] - self.episodes.first_step[place]) + 1
        if last - first < SCANNED_ROWS * count:
            rows = np.arange(first, last + 1)
            found: RowIds = rows[self._keys[rows % self._buffer_size] >> STEP_BITS == place]
            return found
        ids = [first]
        while ids[-1] < last:
            ids.append(ids[-1] + int(self._next[ids[-1] % self._buffer_size]))
        return np.array(ids)
