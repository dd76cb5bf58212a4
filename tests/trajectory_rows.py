"""The rows of a table of trajectories, as those who write them without a writer of trajectories see them; and what the table must say of them."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from tensordict import TensorDict

from tdreplay.system_fields import StepKind
from tdreplay.trajectory_state import Episode, Statistics
from tdreplay_client.sharding.placement import hashed
from trajectory_oracle import Ring, Row
from trajectory_play import Actor, nested, plain_fields
from trajectory_shards import RingOverShards

__all__ = ["Chronicle", "Players", "columns_of", "id_of", "kind_of"]


def id_of(serial: Hashable) -> int:
    """The id of an episode."""
    return (hash(serial) * 2_654_435_761) % (1 << 62)


def kind_of(row: Row) -> StepKind:
    """What a row is to its episode."""
    if row.final:
        return StepKind.FINAL
    kind = {"": StepKind.STEP, "terminated": StepKind.TERMINATED, "truncated": StepKind.TRUNCATED}[row.ended]
    return kind | StepKind.FINAL_FOLLOWS if row.announces else kind


def columns_of(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The columns of rows: names of nested fields are joined."""
    zero = {name: np.zeros_like(value) for name, value in plain_fields(0, 0).items()}
    columns = {name: np.stack([row.fields.get(name, zero[name]) for row in rows]) for name in zero}
    columns["episode_id"] = np.array([id_of(row.episode) for row in rows], np.int64)
    columns["step"] = np.array([row.number for row in rows], np.int64)
    columns["step_kind"] = np.array([kind_of(row) for row in rows], np.uint8)
    return columns


class Players:
    """Actors side by side, each at its own pace."""

    def __init__(self, seed: int, actors: int, **options: object) -> None:
        self._chance = random.Random(seed)
        numbers = itertools.count()
        self._actors = [Actor(random.Random(seed + place + 1), numbers, **options) for place in range(actors)]
        self._left: list[list[Row]] = [[] for _ in self._actors]

    def rows(self, number: int) -> list[Row]:
        """The next rows. A final observation may come later than the step before it."""
        found: list[Row] = []
        while len(found) < number:
            place = self._chance.randrange(len(self._actors))
            if not self._left[place]:
                self._left[place] = list(self._actors[place].play().rows)
            found.append(self._left[place].pop(0))
        return found


class Chronicle:
    """A ring, and all that happened to it since the server started; over `shards` of them where there are several."""

    def __init__(self, capacity: int, shards: int = 1) -> None:
        self.ring = RingOverShards(capacity, shards) if shards > 1 else Ring(capacity)
        self._rewards: defaultdict[Hashable, list[float]] = defaultdict(list)
        self._ended: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)

    def insert(self, rows: Sequence[Row]) -> TensorDict:
        """Takes rows in, and gives what a buffer is to store."""
        for row in rows:
            home = self._home_of(row)
            self.ring.insert(row)
            if not row.final:
                self._rewards[row.episode].append(float(row.fields["reward"]))
                if row.ended:
                    self._ended[home].append((math.fsum(self._rewards[row.episode]), row.number + 1))
        return TensorDict(nested({name: torch.from_numpy(column) for name, column in columns_of(rows).items()}), [len(rows)])

    def _home_of(self, row: Row) -> int:
        """The place of the shard of an episode, which its id says."""
        if isinstance(self.ring, RingOverShards):
            return self.ring.homes.setdefault(row.episode, hashed(id_of(row.episode), range(len(self.ring.parts))))
        return 0

    def restart(self) -> None:
        """The server starts again: it has what is stored, and no more."""
        self._ended.clear()
        self._rewards.clear()
        for row in self.ring.steps.values():
            self._rewards[row.episode].append(float(row.fields["reward"]))

    def episodes(self, unfinished: str) -> list[Episode]:
        """What the table is to say of its episodes. Those that did not end are `unfinished`."""
        found = []
        for serial, episode in self.ring.episodes.items():
            if not episode.steps:
                continue
            first = next(iter(episode.steps))
            ended, total = episode.ended or unfinished, math.fsum(self._rewards[serial])
            found.append(Episode(id_of(serial), episode.steps[first][0], first, len(episode.steps), total, ended, episode.final is not None))
        return found

    def statistics(self) -> tuple[Statistics, Statistics]:
        """Of the returns and lengths of the last 100 episodes that ended, on each shard."""
        lately = [one for ended in self._ended.values() for one in ended[-100:]]
        return _in_short([total for total, _ in lately]), _in_short([float(length) for _, length in lately])


def _in_short(values: list[float]) -> Statistics:
    if not values:
        return Statistics()
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return Statistics(len(values), mean, std, min(values), max(values))
