"""Which rows of a window of row ids are anchors of an epoch: the same ones, whatever came after the window."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.windows import AnchorRule
from tdreplay_server.storage.ring import RowIds
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex

__all__ = ["EpochAnchors", "Judged"]

LATER_ROWS = 1 << 15
"""So many rows that came after the window are looked at while the lock is held once."""


class Judged(NamedTuple):
    """What some live rows are to an epoch: bools of shape [n].

    Attributes:
        anchors: It is an anchor whose whole window is stored.
        lost: It would be one, but earlier steps of its episode are not stored, and rows of the epoch were overwritten. Whether it was one when these
            were stored is not known any more.
    """

    anchors: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]


class EpochAnchors:
    """The anchors among some rows: the steps whose whole windows lie in these rows. All methods are called under the table's lock.

    Nothing of it has to be kept: it follows from what is stored as long as the rows are. It remembers one number for each episode that goes on after
    the rows.

    Args:
        index: Knows the episodes.
        rule: What an anchor needs.
        rows: The ids of the rows.
    """

    def __init__(self, index: EpisodeIndex, rule: AnchorRule, rows: range) -> None:
        self._index, self._rule, self._rows = index, rule, rows
        self._reach = rule.steps if rule.next_step else rule.steps - 1  # How many rows after an anchor are needed at the most.
        self._seen = rows.stop
        self._going_on: dict[int, int] = {}  # Episode id -> the number of its last row before the end of the rows.

    def follow(self) -> bool:
        """Looks at rows that came after the window, of which there may be many; False: there are more of them."""
        self._index.current()
        if not self._reach:
            return True
        start = max(self._seen, self._index.oldest)
        stop = min(start + LATER_ROWS, self._index.end)
        if start < stop:
            self._note(np.arange(start, stop))
            self._seen = stop
        return stop >= self._index.end

    def _note(self, ids: RowIds) -> None:
        before = self._index.before(ids)
        first = (before >= 0) & (before < self._rows.stop)
        episode_ids = self._index.episodes.ids[self._index.places_of(ids[first])]
        self._going_on.update(zip(episode_ids.tolist(), self._index.steps_of(before[first]).tolist(), strict=True))

    def judged(self, ids: RowIds) -> Judged:
        """What live rows of the window are. `follow` has said that there is no more to look at."""
        index, rule = self._index, self._rule
        anchors = index.are_anchors(ids, rule._replace(before=0)) & self._end_before(ids)
        if not rule.before:
            return Judged(anchors, np.zeros(len(ids), np.bool_))
        has_head = index.has_before(ids, rule.before)
        there = anchors & has_head
        if index.oldest < self._rows.start:
            there[there] = self.first_rows(ids[there]) >= self._rows.start
        return Judged(there, anchors & ~has_head if index.oldest > self._rows.start else np.zeros(len(ids), np.bool_))

    def _end_before(self, ids: RowIds) -> npt.NDArray[np.bool_]:
        """Whether the windows of rows that are anchors now end before the window of the epoch does."""
        found = np.ones(len(ids), np.bool_)
        if not self._going_on:
            return found
        episodes, places = self._index.episodes, self._index.places_of(ids)
        some = np.flatnonzero(episodes.last_row[places] >= self._rows.stop)
        places = places[some]
        steps = self._index.steps_of(ids[some])
        following = episodes.last_step[places] - steps + (episodes.has_final[places] if self._rule.next_step else 0)
        known, inverse = np.unique(places, return_inverse=True)
        lasts = np.array([self._going_on.get(episode_id, -1) for episode_id in episodes.ids[known].tolist()], np.int64)
        found[some] = steps + np.minimum(following, self._reach) <= lasts[inverse]
        return found

    def now(self, ids: RowIds) -> npt.NDArray[np.bool_]:
        """Whether live rows are anchors now, wherever their windows lie."""
        return self._index.are_anchors(ids, self._rule)

    def first_rows(self, ids: RowIds) -> RowIds:
        """The ids of the oldest rows that anchors need."""
        return self._index.first_rows(ids, self._rule) if len(ids) else ids
