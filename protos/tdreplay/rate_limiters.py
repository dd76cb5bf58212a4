"""What decides who has to wait, as values.

The rules are those of Reverb (Cassirer et al., Reverb: A Framework for Experience Replay, 2021, section 3.4). They count the rows that were ever
inserted into a table, and the rows that were ever drawn from it. A row counts as drawn when a learner takes its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_number, check_whole
from tdreplay.named_settings import NamedSetting, named_setting

__all__ = ["RATE_LIMITERS", "MinSize", "Queue", "RateLimiter", "SamplesPerInsert", "Unlimited", "rate_limiter_of"]


@dataclass(frozen=True)
class RateLimiter(NamedSetting):
    """Base of the rate limiters."""


@dataclass(frozen=True)
class Unlimited(RateLimiter):
    """Nobody waits."""

    name = "none"


@dataclass(frozen=True)
class MinSize(RateLimiter):
    """Batches wait until the table holds `min_size` rows. Inserts never wait.

    0 is what a shard may have of a whole buffer's: it waits for its first row. Nobody may ask it of a whole table; see `TableRequest.of`.

    Raises:
        InvalidArgumentError: min_size is below 0.
    """

    name = "min_size"

    min_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_size", check_whole(self.min_size, "min_size", 0))


@dataclass(frozen=True)
class SamplesPerInsert(RateLimiter):
    """Each row is drawn `samples_per_insert` times on average; whoever is ahead by more than `error_buffer` draws waits.

    With i rows inserted and s rows drawn, the balance ``i * samples_per_insert - s`` stays within `error_buffer` of
    ``min_size * samples_per_insert``, once `min_size` rows are there. Rows are inserted if the balance stays at or below the upper bound. They are
    drawn if it stays at or above the lower one, and the table holds `min_size` rows.

    Attributes:
        samples_per_insert: How often a row is drawn, above 0.
        min_size: The rows that have to be there before one is drawn, at least 1; 0 as in `MinSize`.
        error_buffer: In draws: at least `samples_per_insert` and at least 1, or both sides would wait for each other.

    Raises:
        InvalidArgumentError: a number breaks its rule.
    """

    name = "samples_per_insert"

    samples_per_insert: float
    min_size: int
    error_buffer: float

    def __post_init__(self) -> None:
        ratio = check_number(self.samples_per_insert, "samples_per_insert", 0)
        if ratio == 0:
            raise InvalidArgumentError("samples_per_insert (0) must be above 0: no row would be drawn, and inserts would wait for ever")
        object.__setattr__(self, "samples_per_insert", ratio)
        object.__setattr__(self, "min_size", check_whole(self.min_size, "min_size", 0))
        buffer = check_number(self.error_buffer, "error_buffer", 0)
        if buffer < max(1.0, ratio):
            raise InvalidArgumentError(
                f"error_buffer ({buffer:g}) must be at least {max(1.0, ratio):g}, which is samples_per_insert or 1: "
                "with less, inserts and batches would wait for each other for ever"
            )
        object.__setattr__(self, "error_buffer", buffer)


@dataclass(frozen=True)
class Queue(RateLimiter):
    """Inserts wait while `max_size` rows were inserted and not drawn; batches wait until so many rows were inserted and not drawn as they take.

    With ``sampler=Fifo()`` and ``max_times_sampled=1`` the table is a queue. With ``max_times_sampled=1`` inserts also wait rather than overwrite a
    row that was not drawn, unless a batch waits for rows that only an insert can bring.

    Raises:
        InvalidArgumentError: max_size is below 1.
    """

    name = "queue"

    max_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_size", check_whole(self.max_size, "max_size", 1))


RATE_LIMITERS: Mapping[str, type[RateLimiter]] = {kind.name: kind for kind in (Unlimited, MinSize, SamplesPerInsert, Queue)}
"""The name of a rate limiter -> its class."""


def rate_limiter_of(entries: object) -> RateLimiter:
    """The rate limiter that `entries` describes: a `RateLimiter`, a name, or a mapping of ``name`` and its numbers.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    return named_setting(entries, "rate_limiter", RATE_LIMITERS)
