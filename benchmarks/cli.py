"""The benchmark's command."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.figures import Figures, Verdict, verdicts
from benchmarks.machine import machine, sizes, versions
from benchmarks.plan import ENTRIES, Plan
from benchmarks.plot import draw
from benchmarks.processes import adopt_orphans
from benchmarks.report import memory_lines, print_header, print_report
from benchmarks.results_file import write_results
from benchmarks.rounds import ROOT, Outcome, run_rounds
from benchmarks.targets import COMPARISONS, Comparison
from benchmarks.trajectory_targets import TRAJECTORY_COMPARISONS, trajectory_programs

__all__ = ["main"]

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Runs the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # As an exception, so that all children are ended.
    adopt_orphans()
    typer.run(bench)


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="One short round, without the peers that need environments of their own.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="TorchRL's Ray buffer over torch.distributed too.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often each is measured; they take turns. Default: 3, or 1 if quick.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="That each figure may take. Default: 1, or 0.3 if quick.")] = None,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where latest.json and bench.png go. Default: benchmarks/results, or nowhere if quick.")
    ] = None,
) -> None:
    """Measure tdreplay and its peers: the same work, on this machine, in turn.

    Every batch that comes back is checked against what was stored. The table has the ratios, and the ratio that is required next to each. The exit
    code is 1 where a participant failed, or brought wrong rows; a target that is missed does not change it.

    The peers' environments are built once, in $TDREPLAY_BENCH_ENVS or ~/.cache/tdreplay-bench: a directory `reverb` and one `ray` in it.
    """
    programs = (*ENTRIES, *trajectory_programs(quick))
    plan = Plan(quick, everything, rounds or (1 if quick else 3), seconds or (0.3 if quick else 1.0), programs)
    about: dict[str, Any] = {"machine": machine(), "work": sizes()}
    print_header(about["machine"], about["work"])
    outcome = run_rounds(plan)
    about["versions"] = versions({entry.environment for entry in plan.entries} - {""} - outcome.left_out.keys())
    figures = Figures(outcome.rounds)
    compared = verdicts(figures, plan, (*COMPARISONS, *TRAJECTORY_COMPARISONS))
    print_report(compared, memory_lines(figures), outcome, about["versions"])
    directory = output or (None if quick else RESULTS)
    if directory is not None:
        _write(directory, plan, about, compared, figures, outcome)
    raise typer.Exit(1 if outcome.failures else 0)


def _write(
    directory: Path,
    plan: Plan,
    about: dict[str, Any],
    compared: list[tuple[Comparison, Verdict | None]],
    figures: Figures,
    outcome: Outcome,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_results(directory / "latest.json", plan, about, compared, outcome)
    draw(directory / "bench.png", figures, "{processor}, {cores} cores".format_map(about["machine"]))
    print(f"All figures are in {directory / 'latest.json'}, and a picture of them in {directory / 'bench.png'}.")
