"""How long a single batch over many shards takes, worked out of what single shards took. No clocks and no sockets: ``shards_plan`` measures.

A batch of n rows over k shards asks each shard for its multinomial count, all at once, and skips those whose count is 0. It is there when the last of
them has answered: the maximum of as many draws from what one shard takes for so many rows. What stands in the way of "all at once" is the client: it
works a little for each call, for one after the other. Where servers and clients share cores, these are a second bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FanOut", "Latencies", "asked_shards", "predicted", "quantiles"]

Array = NDArray[Any]


class Latencies:
    """What calls to one shard took.

    Args:
        seconds: rows of a call -> seconds of each call that was measured.
    """

    def __init__(self, seconds: Mapping[int, Sequence[float]]) -> None:
        self._sizes = np.array(sorted(seconds))
        self._seconds = [np.asarray(seconds[size], dtype=np.float64) for size in self._sizes]

    def drawn(self, rows: Array, rng: np.random.Generator) -> Array:
        """For each number of rows, the seconds of one of the calls that had as many; where none had, of those that had the next larger number."""
        places = np.minimum(np.searchsorted(self._sizes, rows), len(self._sizes) - 1)
        found = np.empty(len(rows))
        for place in np.unique(places):
            chosen = places == place
            found[chosen] = rng.choice(self._seconds[place], int(chosen.sum()))
        return found


@dataclass(frozen=True)
class FanOut:
    """How a client asks its shards.

    Attributes:
        rows: of a batch.
        client_seconds: what the client itself works for each call, one call after the other.
        call_seconds: what client and server together work for each call.
        cores: that client and servers share; 0: each has its own.
    """

    rows: int
    client_seconds: float = 0.0
    call_seconds: float = 0.0
    cores: int = 0


def predicted(latencies: Latencies, shards: int, plan: FanOut, batches: int, rng: np.random.Generator) -> Array:
    """The seconds that batches over so many shards of equal mass take: shape [batches]."""
    counts = rng.multinomial(plan.rows, np.full(shards, 1 / shards), size=batches)
    asked = [row[row > 0] for row in counts]
    calls = np.split(latencies.drawn(np.concatenate(asked), rng), np.cumsum([len(row) for row in asked])[:-1])
    return np.array([_last(row, plan) for row in calls])


def _last(calls: Array, plan: FanOut) -> float:
    """When the last of the calls of a batch is there: each begins in its turn."""
    own = float((np.arange(len(calls)) * plan.client_seconds + calls).max())
    return max(own, len(calls) * plan.call_seconds / plan.cores) if plan.cores else own


def asked_shards(rows: int, shards: int) -> float:
    """How many shards of equal mass a batch asks, on average: those with a row at least."""
    return float(shards * (1 - (1 - 1 / shards) ** rows))


def quantiles(seconds: Sequence[float] | Array) -> tuple[float, float]:
    """The median and the 99th percentile."""
    low, high = np.quantile(np.asarray(seconds), (0.5, 0.99))
    return float(low), float(high)
