"""What is known of each episode of which a row is live."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EpisodeTable", "Places"]

Places = npt.NDArray[np.int32]
"""Places of episodes in an `EpisodeTable`: shape [n]."""

FIRST_PLACES = 64


class EpisodeTable:
    """The episodes, each at a place that another one takes when it is gone. Arrays have shape [places].

    Attributes:
        ids: The episode's id.
        first_row: The id of its first live row; -1 where no episode has the place.
        first_step: The number of that row in the episode.
        last_row: The id of its newest row.
        last_step: The number of its newest step, final observations left out.
        kind: The `StepKind` of its last step, once it ended; 0 before.
        has_final: Whether its final observation came.
        evicted_row: The id of its row that was evicted last; -1: none was.
        places: The id of an episode -> its place.
        headless: The places of those whose first rows were evicted.
    """

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.headless: set[int] = set()
        self._free: list[int] = []
        self._used = 0
        self._take_room(FIRST_PLACES)

    def _take_room(self, size: int) -> None:
        def more(name: str, dtype: Any) -> npt.NDArray[Any]:
            grown = np.zeros(size, dtype)
            before = getattr(self, name, grown[:0])
            grown[: len(before)] = before
            return grown

        self.ids, self.first_row, self.first_step = more("ids", np.int64), more("first_row", np.int64), more("first_step", np.int64)
        self.last_row, self.last_step = more("last_row", np.int64), more("last_step", np.int64)
        self.kind, self.has_final = more("kind", np.uint8), more("has_final", np.bool_)
        self.evicted_row = more("evicted_row", np.int64)

    @property
    def used(self) -> int:
        """The places that episodes have, or had."""
        return self._used

    def __len__(self) -> int:
        return len(self.places)

    def find(self, episode_ids: list[int]) -> Places:
        """The places of episodes; -1 for each that is not there."""
        return np.fromiter(map(self.places.get, episode_ids, repeat(-1)), np.int32, len(episode_ids))

    def add(self, episode_ids: list[int]) -> Places:
        """Places for new episodes. What is known of them is for the caller to write."""
        reused = [self._free.pop() for _ in range(min(len(self._free), len(episode_ids)))]
        fresh = range(self._used, self._used + len(episode_ids) - len(reused))
        self._used = fresh.stop
        if self._used > len(self.ids):
            self._take_room(max(self._used, 2 * len(self.ids)))
        places = np.array([*reused, *fresh], np.int32)
        self.places.update(zip(episode_ids, places.tolist(), strict=True))
        self.ids[places], self.kind[places], self.has_final[places], self.evicted_row[places] = episode_ids, 0, False, -1
        return places

    def remove(self, places: Places) -> None:
        """Forgets episodes that are gone."""
        gone = places.tolist()
        for place, episode_id in zip(gone, self.ids[places].tolist(), strict=True):
            del self.places[episode_id]
            self.headless.discard(place)
        self.first_row[places] = -1
        self._free.extend(gone)

    def live(self) -> Places:
        """The places of all episodes that are there."""
        return np.flatnonzero(self.first_row[: self._used] >= 0).astype(np.int32)
