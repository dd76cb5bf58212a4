"""Actors at work on a buffer: what they play goes through real writers, and into the oracle's ring in the order in which the table must hold it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdreplay.api import BaseReplayBuffer
from trajectory_oracle import Row
from trajectory_play import ENDS, LONGEST, Actor, Played
from trajectory_shards import RingOverShards, ring_of, written

__all__ = ["Crew", "Stage", "writer_options"]


def writer_options(buffer: BaseReplayBuffer) -> dict[str, Any]:
    """Options of writers that send what they have when they are told to, and never by themselves: so the order of all rows is known."""
    return {"flush_rows": 10_000, "flush_seconds": 600.0} if hasattr(buffer, "address") or hasattr(buffer, "addresses") else {}


@dataclass
class Crew:
    """The actors of one writer.

    Attributes:
        writer: Of a buffer.
        actors: One for each environment.
        speed: How many steps it takes at once, at most.
    """

    writer: Any
    actors: Sequence[Actor]
    speed: int

    def append(self, prioritized: bool) -> list[Played]:
        """Each actor plays a step, and the writer gets them."""
        played = [actor.play() for actor in self.actors]
        options: dict[str, Any] = {}
        if prioritized:
            priorities = [one.rows[0].priority for one in played]
            options["priority"] = priorities[0] if len(played) == 1 else np.array(priorities)
        if len(played) == 1:
            self.writer.append(played[0].step, final=played[0].final, **options)
        else:
            self.writer.append(stacked([one.step for one in played]), final=self._finals(played), **options)
        return played

    @staticmethod
    def _finals(played: Sequence[Played]) -> Any:
        """As Gymnasium gives them: an array of objects, None where an environment goes on."""
        if not any(one.final for one in played):
            return None
        found = np.empty(len(played), object)
        found[:] = [one.final for one in played]
        return found

    def abandon(self, played: Sequence[Played]) -> None:
        """Gives up the episodes that go no further."""
        left = [number for number, one in enumerate(played) if one.abandons]
        if left:
            self.writer.abandon() if len(played) == 1 else self.writer.abandon(left)


def stacked(steps: Sequence[Any]) -> Any:
    """The steps of some environments as one, whose values have a first dimension."""
    if isinstance(steps[0], dict):
        return {name: stacked([step[name] for step in steps]) for name in steps[0]}
    return np.stack(steps)


class Stage:
    """A buffer that actors play into.

    Attributes:
        buffer: The buffer. Whoever opens it again puts another one here, and calls `enter`.
        ring: What it must hold.
        crews: Who plays.
    """

    def __init__(
        self,
        buffer: BaseReplayBuffer,
        capacity: int,
        envs: Sequence[int] = (1, 1, 1),
        *,
        seed: int = 0,
        ends: tuple[str, ...] = ENDS,
        longest: int = LONGEST,
        prioritized: bool = False,
    ) -> None:
        self.buffer, self.ring, self.prioritized = buffer, ring_of(buffer, capacity), prioritized
        self._chance, self._numbers = random.Random(seed), itertools.count()
        self._actor: Callable[[], Actor] = lambda: Actor(random.Random(self._chance.random()), self._numbers, longest, ends)
        self.crews: list[Crew] = []
        self.enter(envs)

    def enter(self, envs: Sequence[int]) -> None:
        """Adds writers of so many environments each."""
        for count in envs:
            writer = self.buffer.trajectory_writer(count, **writer_options(self.buffer))
            self.crews.append(Crew(writer, [self._actor() for _ in range(count)], self._chance.choice([1, 1, 2, 5, 9])))

    def leave(self, crew: Crew | None = None) -> None:
        """Closes a writer, or all of them. Their episodes do not go on."""
        for one in [crew] if crew else list(self.crews):
            one.writer.close()
            self.crews.remove(one)

    def drop(self) -> None:
        """Gives up all episodes. The writers go on with others."""
        for crew in self.crews:
            crew.writer.abandon()
            for actor in crew.actors:
                actor.drop()

    def play(self, rows: int) -> None:
        """Lets some crews play until so many rows came."""
        end = self.ring.write_count + rows
        while self.ring.write_count < end:
            self.burst(self._chance.choice(self.crews))

    def burst(self, crew: Crew, steps: int = 0) -> None:
        """Lets one crew play some steps, and waits until they are stored."""
        before, rows = written(self.buffer), list[Row]()
        for _ in range(steps or self._chance.randint(1, crew.speed)):
            played = crew.append(self.prioritized)
            rows += (*(one.rows[0] for one in played), *(row for one in played for row in one.rows[1:]))  # All steps, then the final observations.
            crew.abandon(played)
        crew.writer.flush()
        if isinstance(self.ring, RingOverShards):
            (home,) = (place for place, (old, new) in enumerate(zip(before, written(self.buffer), strict=True)) if new > old)
            self.ring.homes |= dict.fromkeys((row.episode for row in rows), home)
        for row in rows:
            self.ring.insert(row)
