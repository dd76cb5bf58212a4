"""tdreplay's prioritized sampler alone, without a table around it: draws and updates of few rows, and of many."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Report, Step, Task, in_turn
from benchmarks.samplers import BATCH, Filled, median_time
from tdreplay.samplers import Prioritized


def main(task: Task) -> None:
    """Measures it with the two numbers of rows that the task's variant names: "few many"."""
    filled = {name: Filled(Prioritized(), int(rows)) for name, rows in zip(("few", "many"), task.variant.split(), strict=True)}
    laps: dict[str, Callable[[float], float]] = {}
    for name, one in filled.items():
        laps[f"draw of {name} rows"] = _lap(one.draw, one.update)
        laps[f"update of {name} rows"] = _lap(one.update)
    for op, seconds in in_turn(laps, task.seconds).items():
        Report(task).speed(op, BATCH, seconds)


def _lap(call: Step, *before: Step) -> Callable[[float], float]:
    return lambda seconds: median_time(call, *before, seconds=seconds)


if __name__ == "__main__":
    main(Task.from_command_line())
