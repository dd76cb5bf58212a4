"""The rows that every participant stores, and how it is checked that they came back.

Imported in every participant's environment: NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCH", "WORKS", "Columns", "Live", "Work", "WrongRowsError", "checked_numbers"]

Array = NDArray[Any]
Columns = dict[str, Array]

BATCH = 256
POOL = 1009
"""Different contents: a prime, so that a slot that is written again gets others."""


class WrongRowsError(Exception):
    """What came back is not what was stored."""


@dataclass(frozen=True)
class Live:
    """The rows that a participant holds: the numbers ``[first, first + size)``."""

    first: int
    size: int


class Work:
    """Rows of one kind: row n is content n mod 1009 of random data, and carries n as its reward.

    Args:
        name: small (165 B a row) or image (56,461 B a row, two stacks of 4 x 84 x 84 pixels).
        capacity: of a buffer that holds them; 0: what belongs to the name.
    """

    def __init__(self, name: str, capacity: int = 0) -> None:
        self.name = name
        usual, draw = WORKS[name]
        self.capacity = capacity or usual
        rng = np.random.default_rng(0)
        self._pool = draw(rng) | {"done": rng.random((POOL, 1)) < 0.01}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(column.nbytes for column in self.rows(0, 1).values())

    def rows(self, first: int, count: int) -> Columns:
        """The rows ``[first, first + count)``: field -> array of shape [count, ...]."""
        return self._numbered(np.arange(first, first + count))

    def steps(self, first: int, count: int) -> list[Columns]:
        """The same, one dict a row."""
        rows = self.rows(first, count)
        return [{name: column[n] for name, column in rows.items()} for n in range(count)]

    def _numbered(self, numbers: NDArray[np.int64]) -> Columns:
        content = {name: column[numbers % POOL] for name, column in self._pool.items()}
        return content | {"reward": numbers.astype(np.float32).reshape(-1, 1)}

    def check(self, batch: Mapping[str, Array], live: Live) -> NDArray[np.int64]:
        """The numbers of the rows of a batch: each must be live, and have its content.

        Raises:
            WrongRowsError: they are not what was stored.
        """
        numbers = checked_numbers(batch["reward"], live)
        for name, expected in self._numbered(numbers).items():
            if not np.array_equal(batch[name].reshape(expected.shape), expected) or batch[name].dtype != expected.dtype:
                raise WrongRowsError(f"{name} is not what was stored, in rows {numbers[:5]} ...")
        return numbers


def checked_numbers(rewards: Array, live: Live) -> NDArray[np.int64]:
    """The numbers of the rows that have these rewards: each must be live.

    Raises:
        WrongRowsError: one is not.
    """
    numbers = rewards.reshape(-1).astype(np.int64)
    inside = (numbers >= live.first) & (numbers < live.first + live.size)
    if not inside.all():
        raise WrongRowsError(f"rows {numbers[~inside][:5]} came, which are not stored: only {live} are")
    return numbers


def _small(rng: np.random.Generator) -> Columns:
    observations = {name: rng.standard_normal((POOL, 17), dtype=np.float32) for name in ("obs", "next_obs")}
    return observations | {"action": rng.standard_normal((POOL, 6), dtype=np.float32)}


def _image(rng: np.random.Generator) -> Columns:
    observations = {name: rng.integers(0, 256, (POOL, 4, 84, 84), dtype=np.uint8) for name in ("obs", "next_obs")}
    return observations | {"action": rng.integers(0, 18, (POOL, 1))}


WORKS: dict[str, tuple[int, Callable[[np.random.Generator], Columns]]] = {"small": (100_000, _small), "image": (10_000, _image)}
"""Name -> capacity in rows, and what draws the contents."""
