"""What samplers, priorities, queues and epochs cost, against tdreplay's uniform stream and against its peers. ``make bench-sampling``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figures import Figures
from benchmarks.judged import Line, run_judged
from benchmarks.plan import SERVICE, Plan
from benchmarks.processes import adopt_orphans
from benchmarks.report import MIB
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
    run_judged(plan, comparisons(against), "tdreplay's samplers, priorities, queues and epochs", LIMITS, _memory)


def _memory(figures: Figures) -> list[Line]:
    grown = figures.memory(Side(SERVICE, "small", "epoch of many rows, memory"))
    words = f"The server's own memory grew by {grown / MIB:.1f} MiB for the start of an epoch over many rows; {MOST_MEMORY / MIB:.0f} are allowed"
    return [Line(words, grown > MOST_MEMORY)]


if __name__ == "__main__":
    typer.run(main)
