"""What is true of the priorities of a table: a dictionary."""

from __future__ import annotations

import numpy as np


class PrioritiesModel:
    """The rows of a table and their raw priorities, by row id.

    Attributes:
        write_count: The id of the next row.
        priorities: The ids of the live rows -> their priorities.
        highest: What a row gets that comes without a priority.
    """

    def __init__(self, buffer_size: int) -> None:
        self._buffer_size = buffer_size
        self.write_count = 0
        self.priorities: dict[int, float] = {}
        self.highest = 1.0

    def insert(self, rows: int, priorities: np.ndarray | None = None) -> None:
        given = [self.highest] * rows if priorities is None else priorities.tolist()
        self.priorities |= dict(zip(range(self.write_count, self.write_count + rows), given, strict=True))
        self.write_count += rows
        self.highest = max(self.highest, *given)
        self.priorities = {row_id: one for row_id, one in self.priorities.items() if row_id >= self.write_count - self._buffer_size}

    def update(self, row_ids: np.ndarray, priorities: np.ndarray) -> tuple[int, int]:
        """How many rows were updated, and how many were stale."""
        live = [(row_id, one) for row_id, one in zip(row_ids.tolist(), priorities.tolist(), strict=True) if row_id in self.priorities]
        last = dict(live)
        self.priorities |= last
        self.highest = max(self.highest, *last.values(), 0.0)
        return len(live), len(row_ids) - len(live)

    def probabilities(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The row ids, ascending, and their probabilities."""
        ids, priorities = np.array(sorted(self.priorities)), np.array([self.priorities[row_id] for row_id in sorted(self.priorities)])
        weights = np.where(priorities > 0, priorities**alpha, 0.0)
        weights = weights if weights.any() else np.ones(len(ids))
        return ids, weights / weights.sum()


def some_priorities(random: np.random.Generator, rows: int) -> np.ndarray:
    """Priorities as learners have them: of several magnitudes, some of them 0."""
    found: np.ndarray = np.where(random.random(rows) < 0.1, 0.0, random.lognormal(0.0, 1.5, rows))
    return found
