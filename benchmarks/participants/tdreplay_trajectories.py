"""tdreplay: tables of steps, over gRPC and over shared memory. What is compared takes turns, a short lap each.

Frames: transitions of stacks that are built at sampling time, beside rows that hold both stacks, as they are inserted and sampled. Small steps:
sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.checks import BINS, check_shares
from benchmarks.measure import Report, Step, Task, in_turn, throughput
from benchmarks.participants.played import ENVS, VIEW, Inserts, fill_rows, fill_steps
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import as_arrays, as_tensordict, check_owned, check_tensordicts
from benchmarks.plan import SHARED_MEMORY
from benchmarks.play import LENGTH, SEQUENCE, SEQUENCES, Play, Turn
from benchmarks.work import BATCH, Live
from tdreplay_client import RemoteReplayBuffer, Sequences
from tdreplay_server import ServerConfig, spawn_server

TRANSPORTS = {"grpc": "", "shared_memory": SHARED_MEMORY}
"""How a client reaches the server -> what the participant is called then, if not as the task says."""
TURNS = 2 * LENGTH
"""After so many all episodes of vectorised environments have ended, and of each one terminated and one was truncated."""
CHECKED = 100
"""Batches of sequences that are looked at."""


def main(task: Task) -> None:
    """Measures it, with so many steps as the task's variant says."""
    play = Play(task.work, ENVS)
    live = Live(0, play.whole(int(task.variant)))
    with spawn_server(ServerConfig(address="127.0.0.1:0")) as server:
        measured = _measure_transitions if play.name == "frames" else _measure_sequences
        measured(task, play, live, server.address)


# -- sequences ------------------------------------------------------------------------------------------------------------------------------------


def _measure_sequences(task: Task, play: Play, live: Live, address: str) -> None:
    with RemoteReplayBuffer(address, buffer_size=play.rows_of(live.size), trajectories=True, transport="grpc") as buffer:
        fill_steps(buffer, play, live)
        with buffer.stream(SEQUENCES, prefetch=PREFETCH["small"], view=Sequences(length=SEQUENCE)) as batches:
            numbers = np.concatenate([play.check_sequences(as_arrays(next(batches)), live) for _ in range(CHECKED)])
            check_shares(numbers, live, np.ones(BINS))
            Report(task).speed("stream", SEQUENCES, throughput(batches.__next__, task.seconds))


# -- transitions of frames ------------------------------------------------------------------------------------------------------------------------


def _measure_transitions(task: Task, play: Play, live: Live, address: str) -> None:
    with ExitStack() as stack:
        fill_rows(_table(stack, address, "rows", live.size, "grpc"), play, live)
        fill_steps(_table(stack, address, "steps", play.rows_of(live.size), "grpc"), play, live)
    for transport, name in TRANSPORTS.items():
        report = Report(task, name)
        _measure_streams(task, report, play, live, address, transport)
        _measure_inserts(task, report, live, address, transport)


def _table(stack: ExitStack, address: str, name: str, rows: int, transport: Any) -> RemoteReplayBuffer:
    """A table of steps, unless its name says that it has rows of transitions."""
    buffer = RemoteReplayBuffer(address, table=name, buffer_size=rows, trajectories="rows" not in name, transport=transport)
    return stack.enter_context(buffer)


def _measure_streams(task: Task, report: Report, play: Play, live: Live, address: str, transport: str) -> None:
    prefetch, shared = PREFETCH["image"], transport == "shared_memory"
    with ExitStack() as stack:
        rows = stack.enter_context(_table(stack, address, "rows", live.size, transport).stream(BATCH, prefetch=prefetch))
        steps = stack.enter_context(_table(stack, address, "steps", play.rows_of(live.size), transport).stream(BATCH, prefetch=prefetch, view=VIEW))
        for stream in (rows, steps):
            check_tensordicts(play, live, stream.__next__)
            check_owned(play, live, stream.__next__, following=prefetch + 2)
            if stream.shared != shared:
                raise RuntimeError(f"the stream has shared memory: {stream.shared}, and it should be {shared}")
        _measure(report, {"stream, rows": _lap(rows.__next__), "stream, steps": _lap(steps.__next__)}, task.seconds)


def _measure_inserts(task: Task, report: Report, live: Live, address: str, transport: str) -> None:
    """All tables are full before, so that each row overwrites another one."""
    together, one = Play(task.work, BATCH), Play(task.work)
    with ExitStack() as stack:
        buffers = [_table(stack, address, f"{name}-inserted", live.size, transport) for name in ("rows", "append", "extend")]
        rows = stack.enter_context(buffers[0].writer())
        append = stack.enter_context(buffers[1].trajectory_writer(n_envs=BATCH))
        extend = stack.enter_context(buffers[2].trajectory_writer())
        batch = as_tensordict(one.rows(0, BATCH))
        inserts = {
            "extend, rows": Inserts(buffers[0], rows, lambda turn: rows.extend(turn.steps), [Turn(batch, None, BATCH)]),
            "append, steps": Inserts(buffers[1], append, lambda turn: append.append(turn.steps, turn.finals), together.turns(TURNS * BATCH, BATCH)),
            "extend, steps": Inserts(buffers[2], extend, lambda turn: extend.extend(turn.steps, turn.finals), one.turns(16 * LENGTH, BATCH)),
        }
        for insert in inserts.values():
            for _ in range(live.size // BATCH + 1):
                insert.insert()
        _measure(report, {op: _lap(insert.insert, insert.flush) for op, insert in inserts.items()}, task.seconds)
        for insert in inserts.values():
            insert.check()
        for play, buffer in zip((together, one), buffers[1:], strict=True):
            play.check(as_arrays(buffer.sample_batch(BATCH, view=VIEW)), Live(0, TURNS * BATCH))


def _lap(step: Step, finish: Step = lambda: None) -> Callable[[float], float]:
    return lambda seconds: throughput(step, seconds, finish)


def _measure(report: Report, laps: dict[str, Callable[[float], float]], seconds: float) -> None:
    for op, took in in_turn(laps, seconds).items():
        report.speed(op, BATCH, took)


if __name__ == "__main__":
    main(Task.from_command_line())
