"""tdreplay: a prioritized table beside a uniform one with the same rows. What is compared takes turns, a short lap each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np

from benchmarks.measure import Report, Step, Task, in_turn, throughput
from benchmarks.participants.service_inserts import FLUSH_TIMEOUT
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import as_tensordict, check_tensordicts, parts
from benchmarks.priorities import ALPHA, MASSES, new_priorities, priorities
from benchmarks.work import BATCH, Live, Work
from tdreplay.samplers import Prioritized, Sampler, Uniform
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

SAMPLERS: dict[str, Sampler] = {"uniform": Uniform(), "prioritized": Prioritized(ALPHA)}
UPDATED_AT_ONCE = 100_000


def main(task: Task) -> None:
    """Fills two tables with so many rows as the task's variant says, and then measures both."""
    work, report, live = Work(task.work), Report(task), Live(0, int(task.variant))
    with spawn_server(ServerConfig(address="127.0.0.1:0")) as server, ExitStack() as stack:
        buffers = {name: stack.enter_context(_filled(server.address, name, work, live)) for name in SAMPLERS}
        _measure_streams(report, work, live, buffers, task.seconds)
        _measure_inserts(report, work, live, buffers, task.seconds)


def _filled(address: str, name: str, work: Work, live: Live) -> RemoteReplayBuffer:
    buffer = RemoteReplayBuffer(address, table=name, buffer_size=live.size, sampler=SAMPLERS[name], transport="grpc")
    for part in parts(work, live.size):
        buffer.add_batch(part)
    if SAMPLERS[name].has_priorities:
        ids, values = np.arange(live.size), priorities(live)
        for start in range(0, live.size, UPDATED_AT_ONCE):
            buffer.update_priorities(ids[start : start + UPDATED_AT_ONCE], values[start : start + UPDATED_AT_ONCE])
    return buffer


def _measure_streams(report: Report, work: Work, live: Live, buffers: dict[str, RemoteReplayBuffer], seconds: float) -> None:
    prefetch = PREFETCH[work.name]
    with buffers["uniform"].stream(BATCH, prefetch=prefetch) as uniform, buffers["prioritized"].stream(BATCH, prefetch=prefetch) as prioritized:
        check_tensordicts(work, live, uniform.__next__)
        check_tensordicts(work, live, lambda: next(prioritized).select(*work.rows(0, 1)), MASSES)
        laps = {"stream, uniform": _lap(uniform.__next__), "stream, prioritized": _lap(prioritized.__next__)}
        _reported(report, in_turn(laps, seconds))
        values = itertools.cycle(new_priorities())
        report.speed("stream with updates", BATCH, throughput(lambda: prioritized.update_priorities(next(prioritized), next(values)), seconds))
        # Updates are pipelined: this one comes after them, and is waited for, so none is left out of what was measured.
        updated = buffers["prioritized"].update_priorities(np.arange(BATCH), next(values))
    if updated != (BATCH, 0):
        raise RuntimeError(f"{updated} is what became of an update of {BATCH} live rows")


def _measure_inserts(report: Report, work: Work, live: Live, buffers: dict[str, RemoteReplayBuffer], seconds: float) -> None:
    batch = as_tensordict(work.rows(live.size, BATCH))
    with ExitStack() as stack:
        writers = {f"extend, {name}": stack.enter_context(buffer.writer()) for name, buffer in buffers.items()}
        _reported(
            report,
            in_turn({op: _lap(partial(writer.extend, batch), partial(writer.flush, FLUSH_TIMEOUT)) for op, writer in writers.items()}, seconds),
        )


def _lap(step: Step, finish: Step = lambda: None) -> Callable[[float], float]:
    return lambda seconds: throughput(step, seconds, finish)


def _reported(report: Report, found: dict[str, float]) -> None:
    for op, seconds in found.items():
        report.speed(op, BATCH, seconds)


if __name__ == "__main__":
    main(Task.from_command_line())
