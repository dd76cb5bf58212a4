"""What samplers, priorities, queues and epochs cost, against tdreplay's uniform stream and against its peers. ``make bench-sampling``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import Figures, Verdict, verdicts
from benchmarks.machine import machine, sizes, versions
from benchmarks.plan import SERVICE, Plan
from benchmarks.processes import adopt_orphans
from benchmarks.report import MIB, print_header, print_report
from benchmarks.rounds import run_rounds
from benchmarks.sampling_targets import LIMITS, comparisons, programs
from benchmarks.targets import Side

MOST_MEMORY = 8 * MIB
"""That a start of an epoch may take: 0.8 bytes for each of 10 million rows. A list of their order would take 40 MiB at least."""


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round with fewer rows and without the peers: under a minute.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is measured; they take turns. Default: 3, or 1 if quick.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="That each figure may take. Default: 2, or 0.3 if quick.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Another checkout of tdreplay, whose uniform stream is compared with this one's."),
    ] = None,
) -> None:
    """Measure samplers, priorities, queues and epochs: ratios, and the ratio that is required next to each.

    The exit code is always 0: it is a report. What is missed stands at its end.
    """
    adopt_orphans()
    plan = Plan(quick, False, rounds or (1 if quick else 3), seconds or (0.3 if quick else 2.0), programs(quick, against))
    print_header(machine(), sizes())
    outcome = run_rounds(plan)
    figures = Figures(outcome.rounds)
    compared = verdicts(figures, plan, comparisons(against))
    found = versions({entry.environment for entry in plan.entries} - {""} - outcome.left_out.keys())
    grown = figures.memory(Side(SERVICE, "small", "epoch of many rows, memory"))
    memory = f"The server's own memory grew by {grown / MIB:.1f} MiB for the start of an epoch over many rows; {MOST_MEMORY / MIB:.0f} are allowed"
    print_report(compared, [memory], outcome, found, title="tdreplay's samplers, priorities, queues and epochs", limits=LIMITS)
    missed = [*_missed(verdict for _, verdict in compared if verdict), *([memory] if grown > MOST_MEMORY else [])]
    print("\n".join(f"TARGET MISSED: {line}" for line in missed) or "All targets that were measured are reached.")


def _missed(found: Iterable[Verdict]) -> list[str]:
    return [
        f"{verdict.comparison.what}, against {verdict.comparison.theirs.participant}: {verdict.ratio:.3g}x, {verdict.words}"
        for verdict in found
        if verdict.words not in ("", "PASS")
    ]


if __name__ == "__main__":
    typer.run(main)
