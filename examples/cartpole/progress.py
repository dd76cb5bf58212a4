"""What the demo shows: bars while it runs, or a line now and then where there is no terminal, and in the end where the time went."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from typing_extensions import Self

from examples.cartpole.evaluation import EPISODES, GOAL
from examples.cartpole.learner import BATCH_SIZE
from examples.cartpole.pace import WARM_UP_ROWS
from examples.cartpole.training import Training

__all__ = ["Display", "print_summary"]

SECONDS_PER_LINE = 5.0


class Display:
    """Shows what is going on, and the rows, updates and return so far. While its `with` block is open, it owns the last lines of a terminal.

    A bar without a known end moves to and fro.
    """

    def __init__(self, console: Console, max_seconds: float) -> None:
        columns = (TextColumn("{task.description:>12}"), BarColumn(40), TextColumn("{task.fields[text]}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._console, self._max_seconds = console, max_seconds
        self._phase = self._bar("now", None, "starting the server")
        self._rows = self._bar("rows", WARM_UP_ROWS)
        self._updates = self._bar("updates", None)
        self._return = self._bar("return", GOAL)
        self._next_line = 0.0

    def _bar(self, name: str, total: float | None, text: str = "") -> TaskID:
        return self._progress.add_task(name, total=total, text=text)

    def show(self, training: Training) -> None:
        """Brings all figures up to date; where there is no terminal, prints them every five seconds."""
        seconds, phase = training.seconds, _phase(training)
        self._set(self._phase, 0, f"{phase}, {seconds:.0f} s of at most {self._max_seconds:.0f}")
        self._set(self._rows, min(training.pushed, WARM_UP_ROWS), f"{training.pushed:,} pushed; the learner begins at {WARM_UP_ROWS:,}")
        self._set(self._updates, training.updates, f"{training.updates:,}")
        self._set(self._return, training.mean_return, f"{training.mean_return:.1f} of {GOAL:.0f} (mean of {EPISODES} greedy episodes)")
        if self._progress.disable and seconds >= self._next_line:
            self._next_line = seconds + SECONDS_PER_LINE
            self._print(f"{seconds:4.0f} s  {training.pushed:6,} rows  {training.updates:6,} updates  return {training.mean_return:5.1f}  {phase}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _set(self, bar: TaskID, completed: float, text: str) -> None:
        self._progress.update(bar, completed=completed, text=text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()


def _phase(training: Training) -> str:
    """What is going on, in words."""
    if training.updates:
        return "learning"
    return "filling the buffer" if training.pushed else "starting the actors and the learner"


def print_summary(console: Console, training: Training, seconds: float) -> None:
    """Says how it ended after `seconds`, and where the time went."""
    console.print("Solved." if training.solved else "Not solved.", style="bold green" if training.solved else "bold red")
    for name, value in _figures(training, seconds):
        console.print(f"{name:>13}  {value}", highlight=False, soft_wrap=True)


def _figures(training: Training, seconds: float) -> list[tuple[str, str]]:
    report = training.report
    learning = max(report.seconds, 1e-9)
    updating = learning - report.waiting - report.evaluating
    after = max(0, training.pushed - WARM_UP_ROWS)
    return [
        ("seconds", f"{seconds:.1f}: {seconds - report.seconds:.1f} to start and to fill the buffer, {report.seconds:.1f} of the learner"),
        ("the learner", f"{updating:.1f} updating, {report.evaluating:.1f} evaluating, {report.waiting:.1f} waiting for batches"),
        ("return", f"{training.mean_return:.1f}, the mean of {EPISODES} greedy episodes"),
        (
            "rows pushed",
            f"{training.pushed:,}: {training.pushed - after:,} before the first update, then {after / max(report.updates, 1):.1f} an update",
        ),
        ("updates", f"{report.updates:,}, one a batch of {BATCH_SIZE} rows: {report.updates / learning:,.0f} a second"),
    ]
