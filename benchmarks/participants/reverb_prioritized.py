"""Reverb's prioritized table, with a new priority for every row of every batch. Runs in an environment of its own."""

from __future__ import annotations

import itertools
from typing import Any

import reverb

from benchmarks.checks import check_samples
from benchmarks.measure import Report, Task, throughput
from benchmarks.participants.reverb_service import TABLE, arrays, batches, fill, serving
from benchmarks.priorities import ALPHA, MASSES, new_priorities, priorities
from benchmarks.work import BATCH, Live, Work


def main(task: Task) -> None:
    """Measures it, with so many rows as the task's variant says."""
    work, live = Work(task.work), Live(0, int(task.variant))
    with serving(live.size, ALPHA) as address:
        fill(address, work.steps(0, live.size), priorities(live))
        laps = [_stream(task, work, live, address, workers) for workers in (1, 2)]
        Report(task).speed("stream with updates", BATCH, min(laps))


def _stream(task: Task, work: Work, live: Live, address: str, workers: int) -> float:
    """Seconds of a batch and its update. The first of the runs checks what comes: the second one finds other priorities."""
    sample = batches(address, work.rows(0, 1), workers)
    if workers == 1:
        check_samples(work, live, lambda: arrays(sample()), MASSES)
    client, values = reverb.Client(address), itertools.cycle(new_priorities())
    return throughput(lambda: _update(client, sample(), next(values)), task.seconds)


def _update(client: Any, sample: Any, values: Any) -> None:
    keys = sample.info.key.numpy().reshape(-1)
    client.mutate_priorities(TABLE, updates=dict(zip(keys.tolist(), values.tolist(), strict=True)))


if __name__ == "__main__":
    main(Task.from_command_line())
