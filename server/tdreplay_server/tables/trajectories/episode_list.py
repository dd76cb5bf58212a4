"""The episodes of a table at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from tdreplay.trajectory_state import Episode
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex
from tdreplay_server.tables.trajectories.returns import exact
from tdreplay_server.tables.trajectories.step_columns import END

__all__ = ["EpisodeList"]

ENDED = {1: "terminated", 2: "truncated"}


class EpisodeList:
    """The episodes of which a step is stored, by ascending first row.

    It is made under the table's shared lock, and copies what is known of the episodes: some milliseconds for each million. The rest is done when it
    is asked.

    Args:
        index: Knows the episodes. It is current.
        writers: The id of an episode -> its writer.
        connected: The writers that are connected.
    """

    def __init__(self, index: EpisodeIndex, writers: Mapping[int, str], connected: AbstractSet[str]) -> None:
        episodes, self._writers, self._connected = index.episodes, writers, connected
        used = episodes.used
        self._ids, self._first_row, self._first_step = (of[:used].copy() for of in (episodes.ids, episodes.first_row, episodes.first_step))
        self._last_step, self._kind, self._has_final = (of[:used].copy() for of in (episodes.last_step, episodes.kind, episodes.has_final))
        self._sums = None if index.returns.rewards.field is None else index.returns.copied(used)
        self._places: npt.NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self._in_order())

    def _in_order(self) -> npt.NDArray[np.intp]:
        if self._places is None:
            there = np.flatnonzero((self._first_row >= 0) & (self._last_step >= self._first_step))
            self._places = there[self._first_row[there].argsort()]
        return self._places

    def part(self, start: int, stop: int) -> list[Episode]:
        """Those from start to stop."""
        places = self._in_order()[start:stop]
        columns: Sequence[npt.NDArray[np.generic]] = (
            self._ids[places],
            self._first_row[places],
            self._first_step[places],
            self._last_step[places] - self._first_step[places] + 1,
        )
        returns = [None] * len(places) if self._sums is None else exact(self._sums[0][places], self._sums[1][places]).tolist()
        ended = self._ended(columns[0].tolist(), self._kind[places] & END)
        return list(map(Episode, *(column.tolist() for column in columns), returns, ended, self._has_final[places].tolist()))

    def _ended(self, ids: list[int], ends: npt.NDArray[np.uint8]) -> Iterator[str]:
        for episode_id, end in zip(ids, ends.tolist(), strict=True):
            yield ENDED.get(end) or ("" if self._writers.get(episode_id) in self._connected else "abandoned")
