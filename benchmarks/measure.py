"""Timing, and handing the figures over: the same for every participant.

Imported in every participant's environment: the standard library alone.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Measurement", "Report", "Step", "Task", "in_turn", "latency", "throughput"]

WARM_UP = 3
FEWEST = 5
LAPS = 7
Step = Callable[[], Any]


@dataclass(frozen=True)
class Measurement:
    """One figure of one round.

    Attributes:
        participant: who.
        work: the name of what it did it with.
        op: what it did.
        rows: of one call.
        seconds: that one call took.
        memory: bytes, of memory or on the disk, where these were measured.
    """

    participant: str
    work: str
    op: str
    rows: int = 0
    seconds: float = 0.0
    memory: int = 0

    @property
    def rows_per_second(self) -> float:
        """How fast it was; 0 where bytes were measured."""
        return self.rows / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Task:
    """What a participant's process is asked for, as its command line.

    Attributes:
        participant: what it is called in the results.
        work: the name of what it is done with.
        seconds: that each figure may take.
        results: the file for the figures, one JSON object a line.
        variant: of the participant, where it has some.
        capacity: rows of its buffer; 0: as many as the work has.
    """

    participant: str
    work: str
    seconds: float
    results: Path
    variant: str = ""
    capacity: int = 0

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        return [self.participant, self.work, str(self.seconds), str(self.results), self.variant, str(self.capacity)]

    @classmethod
    def from_command_line(cls) -> Task:
        """The task of this process."""
        participant, work, seconds, results, variant, capacity = sys.argv[1:]
        return cls(participant, work, float(seconds), Path(results), variant, int(capacity))


class Report:
    """Hands the figures of one participant over.

    Args:
        task: that they are of.
        participant: another name than the task's.
    """

    def __init__(self, task: Task, participant: str = "") -> None:
        self._task, self._participant = task, participant or task.participant

    def speed(self, op: str, rows: int, seconds: float) -> None:
        """`rows` rows took `seconds`."""
        self._write(Measurement(self._participant, self._task.work, op, rows, seconds))

    def memory(self, op: str, size: int) -> None:
        """`size` bytes were taken."""
        self._write(Measurement(self._participant, self._task.work, op, memory=size))

    def _write(self, measurement: Measurement) -> None:
        with self._task.results.open("a") as lines:
            lines.write(json.dumps(asdict(measurement)) + "\n")


def latency(step: Step, seconds: float) -> float:
    """The median time of one step(), each of which is waited for, of those that fit into `seconds`."""
    _repeat(step, WARM_UP)
    laps: list[float] = []
    end = time.perf_counter() + seconds
    while len(laps) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        laps.append(time.perf_counter() - start)
    return statistics.median(laps)


def throughput(step: Step, seconds: float, finish: Step = lambda: None) -> float:
    """The mean time of one step() over about `seconds`, the time of a last finish() included: what a pipelined reader or writer sustains."""
    _repeat(step, WARM_UP)
    finish()
    steps, start = 0, time.perf_counter()
    while steps < FEWEST or time.perf_counter() - start < seconds:
        step()
        steps += 1
    finish()
    return (time.perf_counter() - start) / steps


def in_turn(laps: Mapping[str, Callable[[float], float]], seconds: float) -> dict[str, float]:
    """Name -> the median of what its lap gives. All take turns, a short lap each: so a machine that is busy for a while is so for all of them.

    Args:
        laps: name -> what measures for about so many seconds.
        seconds: that each name may take.
    """
    found: dict[str, list[float]] = {name: [] for name in laps}
    for number in range(LAPS):
        for name in sorted(laps, reverse=number % 2 == 1):
            found[name].append(laps[name](seconds / LAPS))
    return {name: statistics.median(times) for name, times in found.items()}


def _repeat(step: Step, times: int) -> None:
    for _ in range(times):
        step()
