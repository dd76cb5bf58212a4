"""From the rounds to verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Measurement
from benchmarks.plan import Plan
from benchmarks.targets import Comparison, Side, Unit

__all__ = ["Figures", "Verdict", "verdicts"]

COSTS: Mapping[Unit, Callable[[Measurement], float]] = {
    "rows": lambda measurement: measurement.seconds / measurement.rows,
    "calls": lambda measurement: measurement.seconds,
    "bytes": lambda measurement: measurement.memory,
}


@dataclass(frozen=True)
class Verdict:
    """How a comparison came out.

    Attributes:
        comparison: which one.
        ours: median of the rounds, in rows a second, or in bytes where these are compared.
        theirs: the same.
        ratio: of the medians of what is compared; above 1 where ours is better.
        lowest: of the ratios within a round.
        highest: of them.
    """

    comparison: Comparison
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float

    @property
    def words(self) -> str:
        """PASS, or how much is missing; empty where nothing is required."""
        least = self.comparison.least
        if least is None:
            return ""
        return "PASS" if self.ratio >= least else f"short by {1 - self.ratio / least:.0%}"


class Figures:
    """The figures of all rounds."""

    def __init__(self, rounds: Sequence[Sequence[Measurement]]) -> None:
        self._rounds = [{Side(m.participant, m.work, m.op): m for m in measurements} for measurements in rounds]

    def of(self, side: Side) -> list[Measurement]:
        """One for each round that has it."""
        return [measurements[side] for measurements in self._rounds if side in measurements]

    def rows_per_second(self, side: Side) -> float:
        """The median; 0 where it was not measured."""
        return statistics.median([m.rows_per_second for m in self.of(side)] or [0.0])

    def memory(self, side: Side) -> int:
        """The median, in bytes; 0 where it was not measured."""
        return round(statistics.median([m.memory for m in self.of(side)] or [0]))

    def verdict(self, comparison: Comparison) -> Verdict | None:
        """None where one side was never measured."""
        ours, theirs = (self._costs(side, comparison.unit) for side in (comparison.ours, comparison.theirs))
        ratios = [theirs[number] / ours[number] for number in ours.keys() & theirs.keys()]
        if not ratios:
            return None
        ratio = statistics.median(theirs.values()) / statistics.median(ours.values())
        figure = self.memory if comparison.unit == "bytes" else self.rows_per_second
        return Verdict(comparison, figure(comparison.ours), figure(comparison.theirs), ratio, min(ratios), max(ratios))

    def _costs(self, side: Side, unit: Unit) -> dict[int, float]:
        """Round -> seconds of a row, or of a call, or bytes."""
        found = {number: measurements[side] for number, measurements in enumerate(self._rounds) if side in measurements}
        return {number: COSTS[unit](measurement) for number, measurement in found.items()}


def verdicts(figures: Figures, plan: Plan, comparisons: Sequence[Comparison]) -> list[tuple[Comparison, Verdict | None]]:
    """Each comparison of those that take part, and how it came out; the quick form has none that was not measured."""
    chosen = [c for c in comparisons if {c.ours.participant, c.theirs.participant} <= plan.participants]
    compared = [(comparison, figures.verdict(comparison)) for comparison in chosen]
    return [(comparison, verdict) for comparison, verdict in compared if verdict or not plan.quick]
