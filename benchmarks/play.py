"""The steps of episodes that every participant stores, the same as rows of transitions, and how it is checked that they came back.

Imported in every participant's environment: NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.work import BATCH, Columns, Live, WrongRowsError, checked_numbers

__all__ = ["LENGTH", "PLAYS", "SEQUENCE", "SEQUENCES", "STACK", "Play", "Turn"]

LENGTH = 400
"""Steps of an episode. It ends with the last of them, in turn terminated and truncated, and its final observation follows."""
STACK = 4
"""Frames that a policy sees at once."""
SEQUENCES, SEQUENCE = 32, 80
"""Sequences of a batch, and steps of each."""
POOL = 1009
FINAL = 500
"""So far from a step's observation in the pool is the final one after it."""

Numbers = NDArray[np.int64]


class Turn(NamedTuple):
    """What one call of a writer stores.

    Attributes:
        steps: of all environments at one time; or of one environment, in turn.
        finals: the observation after each of them, of which those count that come after an episode's end; or after each end, of one environment.
        rows: that these are.
    """

    steps: Any
    finals: Columns | None
    rows: int


class Play:
    """Some environments that are stepped together. Step n is that of environment n mod `envs`, and carries n as its reward.

    Args:
        name: frames (84 x 84 pixels) or steps (32 floats): the observation.
        envs: how many there are.
    """

    def __init__(self, name: str, envs: int = 1) -> None:
        self.name, self.envs = name, envs
        pool = PLAYS[name](np.random.default_rng(0))
        self._pool = np.concatenate([pool, pool[:BATCH]])  # So that any 256 in a row are a view of it.

    @property
    def row_bytes(self) -> int:
        """Bytes of a step."""
        return sum(column.nbytes for column in self.steps(0, 1).values())

    def whole(self, steps: int) -> int:
        """The largest number of steps up to `steps` with which all episodes have ended."""
        return steps // (LENGTH * self.envs) * LENGTH * self.envs

    def rows_of(self, steps: int) -> int:
        """The rows that whole episodes take, with their final observations."""
        return steps // LENGTH * (LENGTH + 1)

    def turns(self, steps: int, size: int) -> Iterator[Turn]:
        """The steps ``[0, steps)``, so many for each call of a writer: `envs`, or any number of one environment's."""
        return (self._turn(first, min(size, steps - first)) for first in range(0, steps, size))

    def _turn(self, first: int, count: int) -> Turn:
        steps, after = self.steps(first, count), self._frames(first + FINAL, count)
        ends = steps["terminated"] | steps["truncated"]
        rows = count + int(ends.sum())
        if self.envs > 1:
            return Turn(steps, {"obs": after}, rows)
        return Turn(steps, {"obs": after[ends]} if ends.any() else None, rows)

    def steps(self, first: int, count: int) -> Columns:
        """The steps ``[first, first + count)``: field -> array of shape [count, ...]. Up to 256 observations are a view."""
        return {"obs": self._frames(first, count), **self._beside(np.arange(first, first + count))}

    def rows(self, first: int, count: int) -> Columns:
        """The same as transitions: rows with the stacks before and after each step, each in memory of its own."""
        return {name: np.ascontiguousarray(column) for name, column in self._rows(np.arange(first, first + count)).items()}

    def final(self, number: int) -> NDArray[Any]:
        """The observation after step `number`, with which an episode ended."""
        frame: NDArray[Any] = self._frames(number + FINAL, 1)[0]
        return frame

    def check(self, batch: Mapping[str, NDArray[Any]], live: Live) -> Numbers:
        """The numbers of the steps of a batch of transitions: each must be live, and have its stacks.

        Raises:
            WrongRowsError: they are not what was stored.
        """
        numbers = checked_numbers(batch["reward"], live)
        _check_equal(batch, self._rows(numbers), numbers)
        return numbers

    def check_sequences(self, batch: Mapping[str, NDArray[Any]], live: Live) -> Numbers:
        """The numbers of the first steps of a batch of sequences, all fields [n, steps, ...], with what is there in the field mask.

        Raises:
            WrongRowsError: they are not what was stored.
        """
        first = checked_numbers(batch["reward"].reshape(len(batch["reward"]), -1)[:, 0], live)
        numbers = first[:, None] + np.arange(SEQUENCE) * self.envs
        mask = self._age(numbers) >= self._age(first)[:, None]  # An episode after it begins at 0 again.
        expected = {"obs": self._pool[numbers % POOL], **self._beside(numbers)}
        masked = {name: np.where(mask.reshape(mask.shape + (1,) * (column.ndim - 2)), column, 0) for name, column in expected.items()}
        _check_equal(batch, {name: column.astype(expected[name].dtype) for name, column in masked.items()} | {"mask": mask}, first)
        return first

    def _rows(self, numbers: Numbers) -> Columns:
        """Transitions, whose stacks share memory."""
        stack = numbers[:, None] - self.envs * np.minimum(self._age(numbers)[:, None], np.arange(STACK)[::-1])
        following = np.where(self._ends(numbers), numbers + FINAL, numbers + self.envs)
        frames = self._pool[np.column_stack([stack, following]) % POOL]
        return {"obs": frames[:, :-1], "next_obs": frames[:, 1:], **self._beside(numbers)}

    def _beside(self, numbers: Numbers) -> Columns:
        """All fields but the observation."""
        ends, odd = self._ends(numbers), numbers // self.envs // LENGTH % 2 == 1
        return {"action": numbers % 18, "reward": numbers.astype(np.float32), "terminated": ends & ~odd, "truncated": ends & odd}

    def _frames(self, first: int, count: int) -> NDArray[Any]:
        start = first % POOL
        part: NDArray[Any] = self._pool[start : start + count] if count <= BATCH else self._pool[(first + np.arange(count)) % POOL]
        return part

    def _age(self, numbers: Numbers) -> Numbers:
        return numbers // self.envs % LENGTH

    def _ends(self, numbers: Numbers) -> NDArray[np.bool_]:
        return np.asarray(self._age(numbers) == LENGTH - 1)


def _check_equal(batch: Mapping[str, NDArray[Any]], expected: Columns, numbers: Numbers) -> None:
    for name, column in expected.items():
        if not np.array_equal(batch[name].reshape(column.shape), column) or batch[name].dtype != column.dtype:
            raise WrongRowsError(f"{name} is not what was stored, in steps {numbers[:5]} ...")


def _pixels(rng: np.random.Generator) -> NDArray[Any]:
    return rng.integers(0, 256, (POOL, 84, 84), dtype=np.uint8)


def _floats(rng: np.random.Generator) -> NDArray[Any]:
    return rng.standard_normal((POOL, 32), dtype=np.float32)


PLAYS: dict[str, Callable[[np.random.Generator], NDArray[Any]]] = {"frames": _pixels, "steps": _floats}
"""Name -> what draws the observations."""
