"""tdreplay: learner processes that stream from one server at the same time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks.measure import Report, Task
from benchmarks.participants.service import fill
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import check_tensordicts
from benchmarks.work import BATCH, Live, Work
from tdreplay_client import RemoteReplayBuffer

PATIENCE = 60.0
CONTEXT = multiprocessing.get_context("spawn")


def main(task: Task) -> None:
    """Measures one learner, and then four together."""
    from tdreplay_server import ServerConfig, spawn_server

    work, report = Work(task.work), Report(task)
    with spawn_server(ServerConfig(address="127.0.0.1:0", buffer_size=work.capacity)) as server:
        with RemoteReplayBuffer(server.address) as buffer:
            fill(buffer, work)
        for op, learners in (("one learner", 1), ("four learners", 4)):
            rates = _together(learners, server.address, task)
            report.speed(op, BATCH, 1 / sum(rates))


def _together(learners: int, address: str, task: Task) -> list[float]:
    """Batches a second of each of the learners, which run at the same time."""
    start, rates = CONTEXT.Barrier(learners), CONTEXT.SimpleQueue()
    arguments = (address, task.work, task.seconds, start, rates)
    with _running([CONTEXT.Process(target=learn, args=arguments, daemon=True) for _ in range(learners)]) as children:
        for child in children:
            child.join(PATIENCE)
        if any(child.exitcode != 0 for child in children):
            raise RuntimeError(f"learners ended with exit codes {[child.exitcode for child in children]}")
        return [rates.get() for _ in children]


@contextmanager
def _running(children: Sequence[BaseProcess]) -> Iterator[Sequence[BaseProcess]]:
    try:
        for child in children:
            child.start()
        yield children
    finally:
        for child in children:
            child.kill()
            child.join()


def learn(address: str, name: str, seconds: float, start: Barrier, rates: Any) -> None:
    """One learner: checks what comes, waits for the others, and counts its batches until `seconds` have passed."""
    work, count = Work(name), 0
    with RemoteReplayBuffer(address, transport="grpc") as buffer, buffer.stream(BATCH, prefetch=PREFETCH[name]) as batches:
        check_tensordicts(work, Live(0, work.capacity), batches.__next__)
        start.wait(PATIENCE)
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            next(batches)
            count += 1
        rates.put(count / (time.perf_counter() - begin))


if __name__ == "__main__":
    main(Task.from_command_line())
