"""tdreplay's uniform stream in two checkouts, this one and another. Each has its own server and client; they take turns, a short lap each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import Report, Task, in_turn
from benchmarks.work import BATCH

ROOTS = ("protos", "server", "client")
THIS = Path(__file__).resolve().parents[2]


def main(task: Task) -> None:
    """Measures this checkout, and that which the task's variant names."""
    checkouts = {"stream, now": THIS, "stream, before": Path(task.variant)}
    with ExitStack() as stack:
        laps = {op: stack.enter_context(_streaming(task, checkout)) for op, checkout in checkouts.items()}
        for op, seconds in in_turn(laps, task.seconds).items():
            Report(task).speed(op, BATCH, seconds)


@contextmanager
def _streaming(task: Task, checkout: Path) -> Iterator[Callable[[float], float]]:
    """The process of a checkout, while the context is open: what it takes for a batch, measured for about so many seconds."""
    command = [sys.executable, "-m", "benchmarks.participants.stream_laps", task.work, str(checkout)]
    with subprocess.Popen(command, cwd=THIS, env=_variables(checkout), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        told, said = process.stdin, process.stdout
        if told is None or said is None:
            raise RuntimeError("the process has no pipes")

        def measured(seconds: float) -> float:
            print(seconds, file=told, flush=True)
            return float(said.readline())

        yield measured
        told.close()


def _variables(checkout: Path) -> Mapping[str, str]:
    """The environment in which its packages are imported, whichever are installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(checkout / root) for root in ROOTS)}


if __name__ == "__main__":
    main(Task.from_command_line())
