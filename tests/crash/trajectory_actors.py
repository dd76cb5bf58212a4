"""Actors with several environments each, which play episodes that follow from a seed: whoever finds their rows knows which there must be."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdreplay.api import BaseReplayBuffer
from tdreplay.system_fields import StepKind
from tdreplay_client import RemoteReplayBuffer
from trajectory_check import arrays_of
from trajectory_oracle import Ring, Row
from trajectory_play import Actor, Beat, serials
from trajectory_stage import Crew

__all__ = ["MOST", "Streams", "TrajectoryActor", "act", "ring_in"]

TIMEOUT = 60.0
MOST = 64
"""Environments: the numbers of an environment's episodes are so far apart."""


@dataclass(frozen=True)
class TrajectoryActor:
    """One of some actors.

    Attributes:
        address: Of the server.
        directory: For what it notes; a file ``stop`` in it ends the work.
        number: Which one it is.
        envs: How many environments it has.
        pause: Seconds between two flushes.
        flush_rows: Of its writer.
    """

    address: str
    directory: str
    number: int
    envs: int = 4
    pause: float = 0.005
    flush_rows: int = 16

    def actors(self) -> dict[int, Actor]:
        """The number of each of its environments -> what plays there, from the first step on."""
        return {env: Actor(random.Random(env), itertools.count(env, MOST)) for env in range(self.number * self.envs, (self.number + 1) * self.envs)}

    @property
    def notes(self) -> Path:
        """Where it notes how many steps of each environment were acknowledged, 8 bytes each."""
        return Path(self.directory) / f"actor-{self.number}"

    @property
    def acknowledged(self) -> int:
        """The steps of each environment that were acknowledged so far."""
        noted = np.fromfile(self.notes, "<i8") if self.notes.exists() else np.empty(0, np.int64)
        return int(noted[-1]) if len(noted) else 0

    @property
    def goes_on(self) -> bool:
        """Whether there is more to do."""
        return not (Path(self.directory) / "stop").exists()


def act(actor: TrajectoryActor) -> None:
    """In the child: plays, and notes what was acknowledged."""
    torch.set_num_threads(1)
    chance, count = random.Random(actor.number), 0
    with (
        RemoteReplayBuffer(actor.address, timeout=TIMEOUT) as buffer,
        buffer.trajectory_writer(actor.envs, flush_rows=actor.flush_rows) as writer,
        actor.notes.open("ab", buffering=0) as notes,
    ):
        print("acts", flush=True)
        crew = Crew(writer, list(actor.actors().values()), 1)
        while actor.goes_on:
            for _ in range(chance.choice([1, 2, 7, 40])):
                crew.abandon(crew.append(prioritized=False))
                count += 1
            writer.flush()
            notes.write(count.to_bytes(8, "little"))
            time.sleep(actor.pause)


class Streams:
    """What the environments of some actors bring, one row after the other. It grows as it is asked for more."""

    def __init__(self, actors: Sequence[TrajectoryActor]) -> None:
        self._actors = {number: actor for one in actors for number, actor in one.actors().items()}
        self._beats: dict[int, list[tuple[Beat, bool]]] = {number: [] for number in self._actors}
        self._steps: dict[int, list[int]] = {number: [] for number in self._actors}
        self._places: dict[tuple[Hashable, int], int] = {}
        self._of = {one.number: list(one.actors()) for one in actors}

    def place(self, env: int, serial: int, number: int) -> int:
        """Which row of its environment such a row is."""
        while (serial, number) not in self._places:
            self._grow(env)
            assert self._beats[env][-1][0].serial <= serial + MOST, f"nobody played step {number} of episode {serial}"
        return self._places[serial, number]

    def row(self, env: int, place: int) -> Row:
        """A row, with its values."""
        beat, final = self._beats[env][place]
        return beat.rows[final]

    def rows_of(self, actor: TrajectoryActor) -> dict[int, int]:
        """The rows of the steps of each of its environments that were acknowledged, with the final observations among them."""
        return {env: self._rows(env, actor.acknowledged) for env in self._of[actor.number]}

    def _rows(self, env: int, steps: int) -> int:
        while len(self._steps[env]) <= steps:
            self._grow(env)
        return self._steps[env][steps]

    def _grow(self, env: int) -> None:
        beat = self._actors[env].beat()
        for final in range(1 + beat.announces):
            self._places[beat.serial, beat.number + final] = len(self._beats[env])
            self._beats[env].append((beat, bool(final)))
        self._steps[env].append(len(self._beats[env]) - 1 - beat.announces)


def ring_in(buffer: BaseReplayBuffer, streams: Streams) -> tuple[Ring, dict[int, list[int]]]:
    """What a table holds, as the actors played it; and which rows of each environment these are, by ascending row id.

    A final observation does not say who played it. The steps of its episode do. Where these are gone, nobody can tell: it is one of the oldest rows.
    """
    state = buffer.state()
    ring, places, envs = Ring(state.buffer_size), {}, {}
    ring.write_count = state.write_count
    if not state.size:
        return ring, places
    rows = arrays_of(
        buffer.sample_by_index_fields(
            np.arange(state.write_count - state.size, state.write_count) % state.buffer_size, ["row_id", "episode_id", "step", "step_kind", "action"]
        )
    )
    for at in rows["row_id"].argsort().tolist():
        episode, final = int(rows["episode_id"][at]), rows["step_kind"][at] == StepKind.FINAL
        if not final:
            envs[episode] = int(serials(rows["action"][at]))
        if episode not in envs:
            assert final
            ring.rows[int(rows["row_id"][at])] = Row(None, int(rows["step"][at]), {}, final=True)
        else:
            env = envs[episode] % MOST
            place = streams.place(env, envs[episode], int(rows["step"][at]))
            ring.rows[int(rows["row_id"][at])] = streams.row(env, place)
            places.setdefault(env, []).append(place)
    return ring, places
