"""Runs the participants in turn, each in a process of its own, and collects their figures."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import ENVIRONMENTS, LeftOutError, python_of
from benchmarks.measure import Measurement, Task
from benchmarks.plan import Entry, Plan
from benchmarks.processes import ProcessFailedError, run

__all__ = ["ROOT", "Outcome", "run_rounds"]

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class Outcome:
    """What a run brought.

    Attributes:
        rounds: the figures of each round.
        failures: who did not end well, and how.
        left_out: environment -> why it is not there.
    """

    rounds: list[list[Measurement]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def run_rounds(plan: Plan) -> Outcome:
    """Runs all rounds of a plan; who fails is left out, visibly."""
    outcome = Outcome()
    pythons = _pythons(plan, outcome)
    for number in range(1, plan.rounds + 1):
        outcome.rounds.append([])
        for entry, work in plan.turns():
            if entry.environment in pythons:
                _take_turn(plan, entry, work, pythons[entry.environment], number, outcome)
    return outcome


def _pythons(plan: Plan, outcome: Outcome) -> dict[str, Path]:
    """Environment -> its interpreter."""
    pythons = {"": Path(sys.executable)}
    for name in dict.fromkeys(entry.environment for entry in plan.entries if entry.environment):
        try:
            pythons[name] = python_of(ENVIRONMENTS[name])
        except LeftOutError as error:
            outcome.left_out[name] = str(error)
            print(f"{name} is left out: {error}", flush=True)
    return pythons


def _take_turn(plan: Plan, entry: Entry, work: str, python: Path, number: int, outcome: Outcome) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tdb-") as scratch:  # Short: Ray's sockets are in it, and their paths have a limit.
        task = Task(entry.participant, work, plan.seconds, Path(scratch, "results"), entry.variant, entry.capacities.get(work, 0))
        how = _run(entry, task, python, Path(scratch))
        measurements = _read(task.results)
    outcome.rounds[-1].extend(measurements)
    if how:
        outcome.failures.append(f"round {number}, {entry.participant} ({entry.module}), {work}: {how}")
    print(f"round {number}/{plan.rounds}  {work:5}  {entry.module:22} {'FAILED' if how else 'ok':6} {time.monotonic() - start:5.1f} s", flush=True)


def _run(entry: Entry, task: Task, python: Path, scratch: Path) -> str:
    """How the participant failed; empty where it did not."""
    command = [str(python), "-m", f"benchmarks.participants.{entry.module}", *task.arguments]
    try:
        run(command, ROOT, {**_variables(), "TMPDIR": str(scratch)}, scratch / "log", entry.deadline)
    except ProcessFailedError as error:
        return str(error)
    return ""


def _variables() -> dict[str, str]:
    """The environment of a participant. Settings of a server that is used otherwise are not in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TDREPLAY_")} | QUIET


def _read(results: Path) -> list[Measurement]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [Measurement(**json.loads(line)) for line in lines]
