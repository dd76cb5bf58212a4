"""Runs a plan, and says what is missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.figures import Figures, Verdict, verdicts
from benchmarks.machine import machine, sizes, versions
from benchmarks.plan import Plan
from benchmarks.report import print_header, print_report
from benchmarks.rounds import run_rounds
from benchmarks.targets import Comparison

__all__ = ["Line", "run_judged"]


class Line(NamedTuple):
    """A figure that is no ratio, in words, and whether it is too high."""

    words: str
    missed: bool


def run_judged(
    plan: Plan, comparisons: Sequence[Comparison], title: str, limits: Sequence[str], lines: Callable[[Figures], Sequence[Line]] = lambda _: ()
) -> None:
    """Runs the plan, and prints the table of its comparisons. What is missed stands at the end.

    Args:
        plan: who is measured.
        comparisons: what must be reached.
        title: of the table.
        limits: what it does not show.
        lines: makes of the figures what must be reached, and is no ratio.
    """
    print_header(machine(), sizes())
    outcome = run_rounds(plan)
    figures = Figures(outcome.rounds)
    compared, judged = verdicts(figures, plan, comparisons), lines(figures)
    found = versions({entry.environment for entry in plan.entries} - {""} - outcome.left_out.keys())
    print_report(compared, [line.words for line in judged], outcome, found, title=title, limits=limits)
    missed = [*_missed(verdict for _, verdict in compared if verdict), *(line.words for line in judged if line.missed)]
    print("\n".join(f"TARGET MISSED: {words}" for words in missed) or "All targets that were measured are reached.")


def _missed(found: Iterable[Verdict]) -> list[str]:
    return [
        f"{verdict.comparison.what}, against {verdict.comparison.theirs.participant}: {verdict.ratio:.3g}x, {verdict.words}"
        for verdict in found
        if verdict.words not in ("", "PASS")
    ]
