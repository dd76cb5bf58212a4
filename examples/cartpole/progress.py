"""What the demo shows: bars while it runs, or a line now and then where there is no terminal, and the rates in the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from typing_extensions import Self

from examples.cartpole.evaluation import EPISODES, GOAL
from examples.cartpole.learner import BATCH_SIZE, UPDATES_PER_PUSH
from examples.cartpole.pace import ROWS_PER_PUSH
from examples.cartpole.tables import CAPACITY
from examples.cartpole.training import Training

__all__ = ["Display", "print_summary"]

SECONDS_PER_LINE = 10.0


class Display:
    """Shows rows, updates, return and time, each against its end. While its `with` block is open, it owns the last lines of a terminal."""

    def __init__(self, console: Console, max_seconds: float) -> None:
        columns = (TextColumn("{task.description:>12}"), BarColumn(40), TextColumn("{task.fields[text]}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._console = console
        self._rows = self._bar("rows stored", CAPACITY)
        self._updates = self._bar("updates", None)
        self._return = self._bar("return", GOAL)
        self._time = self._bar("time", max_seconds)
        self._next_line = SECONDS_PER_LINE

    def _bar(self, name: str, total: float | None) -> TaskID:
        return self._progress.add_task(name, total=total, text="")

    def show(self, training: Training) -> None:
        """Brings all figures up to date; where there is no terminal, prints them every ten seconds."""
        seconds = training.seconds
        self._set(self._rows, training.rows, f"{training.rows:,}")
        self._set(self._updates, training.updates, f"{training.updates:,}")
        self._set(self._return, training.mean_return, f"{training.mean_return:.1f} (mean of {EPISODES} greedy episodes)")
        self._set(self._time, seconds, f"{seconds:.0f} s")
        if self._progress.disable and seconds >= self._next_line:
            self._next_line = seconds + SECONDS_PER_LINE
            self._print(f"{seconds:4.0f} s  {training.rows:6,} rows stored  {training.updates:6,} updates  return {training.mean_return:5.1f}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _set(self, bar: TaskID, completed: float, text: str) -> None:
        self._progress.update(bar, completed=completed, text=text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()


def print_summary(console: Console, training: Training, seconds: float) -> None:
    """Says how it ended after `seconds`, and the rates."""
    console.print("Solved." if training.solved else "Not solved.", style="bold green" if training.solved else "bold red")
    for name, value in _figures(training, seconds):
        console.print(f"{name:>16}  {value}", highlight=False, soft_wrap=True)


def _figures(training: Training, seconds: float) -> list[tuple[str, str]]:
    report, pushing = training.report, seconds - training.pushing_since
    learning, waiting = max(report.seconds, 1e-9), report.waiting / max(report.seconds, 1e-9)
    rate = report.updates / learning
    return [
        ("seconds", f"{seconds:.1f}, of which the learner learned for {report.seconds:.1f}"),
        ("mean return", f"{training.mean_return:.1f} of {EPISODES} greedy episodes"),
        ("rows pushed", f"{training.pushed:,}: {training.pushed / max(pushing, 1e-9):,.0f} a second ({ROWS_PER_PUSH // UPDATES_PER_PUSH} an update)"),
        (
            "batches sampled",
            f"{report.updates:,} of {BATCH_SIZE} rows: {rate:,.0f} a second ({waiting:.0%} of the learner's time was waiting for them)",
        ),
        ("updates", f"{report.updates:,}: {rate:,.0f} a second (one a batch)"),
    ]
