"""What tables of steps cost, against rows of transitions and against the peers. ``make bench-trajectories``."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.judged import run_judged
from benchmarks.plan import Plan
from benchmarks.processes import adopt_orphans
from benchmarks.trajectory_targets import TRAJECTORY_COMPARISONS, TRAJECTORY_LIMITS, trajectory_programs


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round with fewer steps and without the peers: half a minute.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is measured; they take turns. Default: 3, or 1 if quick.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="That each figure may take. Default: 2, or 0.3 if quick.")] = None,
) -> None:
    """Measure tables of steps: ratios, and the ratio that is required next to each.

    The exit code is always 0: it is a report. What is missed stands at its end.
    """
    adopt_orphans()
    plan = Plan(quick, False, rounds or (1 if quick else 3), seconds or (0.3 if quick else 2.0), trajectory_programs(quick))
    run_judged(plan, TRAJECTORY_COMPARISONS, "tdreplay's tables of steps", TRAJECTORY_LIMITS)


if __name__ == "__main__":
    typer.run(main)
