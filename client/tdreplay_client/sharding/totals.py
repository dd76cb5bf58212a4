"""What is known of the shards' totals, and what part of a batch each of them has by that.

How many rows of a batch each shard gives is drawn multinomially, in proportion to the masses that the shards last reported. So the rows are drawn
from the whole buffer exactly, as far as the masses are what they were. Where the shares q were used in place of p, the total variation distance of
both draws is 1/2 sum |q - p|. Uniform draws from L live rows are off by d / L at most, if d rows were inserted or evicted since the reports.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tdreplay.windows import WindowQuery
from tdreplay_client.sharding.shard_batches import Totals

__all__ = ["FRESH_SECONDS", "DrawKind", "KnownTotals", "Shares"]

FRESH_SECONDS = 0.1
"""How long what a shard reported is used. Rows that others insert meanwhile are the error that the module's first lines bound."""
MOST_KINDS = 64
"""Of how many kinds of draws totals are kept: a program has few, unless it makes a new view for every batch."""

Counts = npt.NDArray[np.int64]


class DrawKind(NamedTuple):
    """Which draws have the same totals.

    Attributes:
        uniform: Whether all rows are equally probable, whatever the table's sampler is.
        windows: What an anchor needs; None: the rows come alone.
    """

    uniform: bool = False
    windows: WindowQuery | None = None


class _Report(NamedTuple):
    """What a shard said: no earlier than when it was asked, and no later than when it was heard."""

    totals: Totals
    asked: float
    heard: float


@dataclass(frozen=True)
class Shares:
    """How a draw is divided among shards.

    Attributes:
        numbers: Of the shards.
        totals: What each has, in the same order.
    """

    numbers: Sequence[int]
    totals: Sequence[Totals]

    @property
    def rows(self) -> int:
        """The rows among which is drawn."""
        return sum(one.rows for one in self.totals)

    @property
    def of(self) -> dict[int, float]:
        """The number of each shard -> its part of the draws. They add up to 1, where there is a row."""
        parts = self._parts()
        whole = parts.sum() or 1.0
        return dict(zip(self.numbers, (parts / whole).tolist(), strict=True))

    @property
    def drawable(self) -> list[int]:
        """The numbers of the shards from which rows can come."""
        return [number for number, part in zip(self.numbers, self._parts(), strict=True) if part]

    def only(self, numbers: Collection[int]) -> Shares:
        """The shares of these shards alone."""
        chosen = [(number, totals) for number, totals in zip(self.numbers, self.totals, strict=True) if number in numbers]
        return self if len(chosen) == len(self.numbers) else Shares([number for number, _ in chosen], [totals for _, totals in chosen])

    def counts(self, rows: int, generator: np.random.Generator) -> Counts:
        """How many of `rows` rows come from each shard, of which one at least has a row: drawn with replacement."""
        parts = self._parts()
        return generator.multinomial(rows, parts / parts.sum())

    def counts_once(self, rows: int, generator: np.random.Generator) -> Counts:
        """The same where no more can be drawn from a shard than its `rows`: drawn without replacement. There must be so many together."""
        return generator.multivariate_hypergeometric([one.rows for one in self.totals], rows, method="marginals")

    @property
    def min_probability(self) -> float:
        """The smallest probability above 0 that a row has."""
        parts = self._parts()
        least = [one.least if one.mass else 1.0 for one, part in zip(self.totals, parts, strict=True) if part]
        return float(min(least) / parts.sum()) if least else 0.0

    def _parts(self) -> npt.NDArray[np.float64]:
        """The masses. If none has any, all rows are equally probable, as inside a shard whose rows have priority 0."""
        masses = np.array([one.mass if one.rows else 0.0 for one in self.totals], np.float64)
        return masses if masses.any() else np.array([one.rows for one in self.totals], np.float64)


class KnownTotals:
    """What shards reported, by kind of draw, and when. Several threads may use it; it asks nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[DrawKind, dict[int, _Report]] = {}
        self._changed: dict[int, float] = {}
        self._sizes: dict[int, int] = {}

    def note(self, kind: DrawKind, number: int, totals: Totals, asked: float) -> None:
        """Notes what the shard of that number reported.

        Args:
            kind: Of which draws.
            number: Of the shard.
            totals: What it said.
            asked: When it was asked, as `time.monotonic` says it.
        """
        with self._lock:
            if kind not in self._reports and len(self._reports) >= MOST_KINDS:
                del self._reports[next(iter(self._reports))]
            reports = self._reports.setdefault(kind, {})
            if number not in reports or asked >= reports[number].asked:
                reports[number] = _Report(totals, asked, time.monotonic())

    def note_size(self, number: int, size: int) -> None:
        """Notes how many rows the shard of that number has."""
        with self._lock:
            self._sizes[number] = size

    def size(self, numbers: Iterable[int]) -> int:
        """How many rows these shards had when they last said it."""
        with self._lock:
            return sum(self._sizes.get(number, 0) for number in numbers)

    def changed(self, number: int) -> None:
        """Notes that this buffer changed the rows of a shard: what it reported before does not count any more."""
        with self._lock:
            self._changed[number] = time.monotonic()

    def forget(self, number: int) -> None:
        """Forgets all that the shard reported: its rows are others now."""
        with self._lock:
            self._sizes.pop(number, None)
            for reports in self._reports.values():
                reports.pop(number, None)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._reports.clear()
            self._sizes.clear()

    def stale(self, kind: DrawKind, numbers: Iterable[int]) -> set[int]:
        """Those of these shards that must be asked before a batch is drawn."""
        oldest = time.monotonic() - FRESH_SECONDS
        with self._lock:
            reports = self._reports.get(kind, {})
            return {number for number in numbers if not self._is_fresh(reports.get(number), self._changed.get(number), oldest)}

    def _is_fresh(self, report: _Report | None, changed: float | None, oldest: float) -> bool:
        return report is not None and report.heard >= oldest and (changed is None or report.asked > changed)

    def shares(self, kind: DrawKind, numbers: Iterable[int]) -> Shares:
        """How a draw is divided among these shards. One of which nothing was heard has no part in it."""
        with self._lock:
            reports = self._reports.get(kind, {})
            known = [(number, reports[number].totals) for number in numbers if number in reports]
        return Shares([number for number, _ in known], [totals for _, totals in known])
