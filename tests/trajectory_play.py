"""Actors that play short episodes of random lengths and ends: each value of a step says which step it is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tdreplay.trajectories import Trajectories
from trajectory_oracle import Row

__all__ = ["TRAJECTORIES", "Actor", "Beat", "Played", "action_of", "nested", "plain_fields", "serials"]

TRAJECTORIES = Trajectories(final_fields=("obs", "camera"))
"""`camera` is the parent of two fields."""
ENDS = ("terminated", "terminated", "bare termination", "truncated", "truncated", "bare truncation", "both", "abandoned")
"""How an episode ends. A bare end has no final observation."""
LONGEST = 30


def observation(serial: int, number: int) -> dict[str, np.ndarray]:
    """What is seen before a step, or after the last one, of an episode."""
    return {
        "obs": np.array([serial, number + 0.5], np.float32),
        "camera.left": (np.arange(6, dtype=np.int64).reshape(2, 3) + 7 * serial + 31 * number + 1).astype(np.uint8),
        "camera.right": np.array(serial * 100 + number + 1, np.int32),
    }


def plain_fields(serial: int, number: int, terminated: bool = False, truncated: bool = False) -> dict[str, np.ndarray]:
    """All fields of a step: names of nested ones are joined."""
    return observation(serial, number) | {
        "action": np.array(action_of(serial, number)),
        "hidden": np.array([number + 1, -serial, 3], np.float64),
        "reward": np.array((serial * 5 + number * 3) % 9 - 4, np.float32),
        "terminated": np.array(terminated),
        "truncated": np.array(truncated),
    }


def action_of(serial: int, number: int) -> int:
    """The action of a step: no other one has it, and none is 0."""
    return 1000 * (serial + 1) + number


def serials(actions: np.ndarray) -> np.ndarray:
    """The episodes of some steps with these actions."""
    return np.asarray(actions) // 1000 - 1


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same with dicts in place of joined names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return found


class Beat(NamedTuple):
    """What an actor does at one time, without its values.

    Attributes:
        serial: The number of the episode.
        number: Of the step.
        end: How the episode ends with it, one of `ENDS`; '': it goes on.
        priority: Of the step.
    """

    serial: int
    number: int
    end: str
    priority: float

    @property
    def terminated(self) -> bool:
        return "terminat" in self.end or self.end == "both"

    @property
    def truncated(self) -> bool:
        return "truncat" in self.end or self.end == "both"

    @property
    def announces(self) -> bool:
        """Whether the final observation follows."""
        return (self.terminated or self.truncated) and "bare" not in self.end

    @property
    def rows(self) -> tuple[Row, ...]:
        """The step, and the final observation where there is one."""
        ended = "terminated" if self.terminated else "truncated" if self.truncated else ""
        fields = plain_fields(self.serial, self.number, self.terminated, self.truncated)
        step = Row(self.serial, self.number, fields, ended, self.announces, priority=self.priority)
        if not self.announces:
            return (step,)
        return step, Row(self.serial, self.number + 1, observation(self.serial, self.number + 1), final=True)


@dataclass(frozen=True)
class Played:
    """What came of an actor at one time.

    Attributes:
        rows: A step, and the final observation where there is one.
        abandons: The episode does not go on after this step, though it did not end.
    """

    rows: tuple[Row, ...]
    abandons: bool

    @property
    def step(self) -> dict[str, Any]:
        """What a writer gets."""
        return nested(self.rows[0].fields)

    @property
    def final(self) -> dict[str, Any] | None:
        """The same of the final observation; None: there is none."""
        return nested(self.rows[1].fields) if len(self.rows) > 1 else None


@dataclass
class Actor:
    """Plays one episode after the other.

    Attributes:
        chance: Where its lengths and ends come from.
        numbers: Where the numbers of its episodes come from: no other actor's have them.
        longest: Of its episodes, in steps.
        ends: How they may end.
        priorities: Some of these are given.
    """

    chance: random.Random
    numbers: Iterator[int]
    longest: int = LONGEST
    ends: tuple[str, ...] = ENDS
    priorities: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    _serial: int = -1
    _number: int = 0
    _length: int = 0
    _end: str = ""

    def drop(self) -> None:
        """Gives up the episode: the next step is the first one of another."""
        self._number = self._length = 0

    def beat(self) -> Beat:
        """The next step, without its values."""
        if self._number == self._length:
            self._serial, self._number = next(self.numbers), 0
            self._length, self._end = self.chance.randint(1, self.longest), self.chance.choice(self.ends)
        self._number += 1
        end = self._end if self._number == self._length else ""
        return Beat(self._serial, self._number - 1, end, self.chance.choice(self.priorities))

    def play(self) -> Played:
        """The next step."""
        beat = self.beat()
        return Played(beat.rows, beat.end == "abandoned")
