"""The inequalities of rate limiters. Arithmetic alone: no threads, no time.

They are those of Reverb (Cassirer et al., Reverb: A Framework for Experience Replay, 2021, section 3.4), for k rows at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from tdreplay.rate_limiters import MinSize, Queue, RateLimiter, SamplesPerInsert

__all__ = ["Counts", "Rule", "rule_of"]

ROUNDING = 1e-9
"""So little does not count when sums of floats are compared."""


class Counts(NamedTuple):
    """What was counted in a table.

    Attributes:
        inserted: Rows that were inserted.
        taken: Rows that were drawn, and taken by a learner.
        reserved: Rows of batches that may be drawn, or were, and were not taken yet.
        size: Rows that are there.
        draws: How often the rows can still be drawn, together. What is reserved is among them.
    """

    inserted: int
    taken: int
    reserved: int
    size: int
    draws: int


@dataclass(frozen=True)
class Rule:
    """Who may go. With i rows inserted and s rows drawn, the balance is ``i * ratio - s``.

    Attributes:
        ratio: How many draws an inserted row is worth.
        min_size: The rows that have to be there before one is drawn.
        min_diff: A batch is drawn if the balance does not sink below this.
        max_diff: Rows are inserted if the balance does not rise above this.
    """

    ratio: float = 1.0
    min_size: int = 1
    min_diff: float = -math.inf
    max_diff: float = math.inf

    def balance(self, inserted: int, drawn: int) -> float:
        """How far the inserts are ahead, in draws."""
        return inserted * self.ratio - drawn

    def may_insert(self, counts: Counts, rows: int) -> bool:
        """Whether so many more rows may be inserted. What is reserved is not drawn yet: it makes no room."""
        return self.balance(counts.inserted + rows, counts.taken) <= self.max_diff

    def insert_room(self, counts: Counts) -> int | None:
        """How many more rows may be inserted; None: any number."""
        if math.isinf(self.max_diff):
            return None
        rows = max(0, math.floor((self.max_diff - self.balance(counts.inserted, counts.taken)) / self.ratio))
        return rows + 1 if self.may_insert(counts, rows + 1) else rows if self.may_insert(counts, rows) else max(0, rows - 1)

    def may_sample(self, counts: Counts, rows: int) -> bool:
        """Whether a batch of so many rows may be drawn besides those that are reserved."""
        drawn = counts.taken + counts.reserved + rows
        return counts.size >= self.min_size and counts.draws - counts.reserved >= rows and self.balance(counts.inserted, drawn) >= self.min_diff

    def batches(self, counts: Counts, rows: int, most: int) -> int:
        """How many batches of so many rows may be drawn, up to `most`."""
        low, high = 0, most
        while low < high:  # If some batches may be drawn, so may fewer.
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.may_sample(counts, rows * middle) else (low, middle - 1)
        return low

    def insert_rows(self, counts: Counts) -> float:
        """The most rows that may ever be inserted at once, from now on: with the balance as low as it can get."""
        lowest = min(self.min_diff, self.balance(counts.inserted, counts.taken))
        return (self.max_diff - lowest) / self.ratio * (1 + ROUNDING)

    @property
    def batch_rows(self) -> float:
        """The most rows that a batch may ever have: with the balance as high as it can get."""
        return self.max_diff - self.min_diff

    def error_buffer(self, insert: int, batch: int) -> float:
        """With this error buffer, or a larger one, never do both an insert and a batch of so many rows wait for the balance."""
        return (insert * self.ratio + batch) / 2


def rule_of(limiter: RateLimiter) -> Rule:
    """The rule of a rate limiter."""
    if isinstance(limiter, MinSize):
        return Rule(min_size=max(1, limiter.min_size))
    if isinstance(limiter, SamplesPerInsert):
        middle = limiter.samples_per_insert * limiter.min_size
        return Rule(limiter.samples_per_insert, max(1, limiter.min_size), middle - limiter.error_buffer, middle + limiter.error_buffer)
    if isinstance(limiter, Queue):
        return Rule(min_diff=0, max_diff=limiter.max_size)
    return Rule()
