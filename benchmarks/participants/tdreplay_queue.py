"""tdreplay's queue against its uniform stream: a writer and a learner, each in a process of its own, over shared memory.

In both, the writer inserts so many batches as fast as it can, and the learner takes as many as fast as it can, at the same time. What counts is the
time until both are done. So both move the same bytes in and out; the queue alone has the learner wait for the writer, and the writer for room.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.measure import Report, Task, in_turn
from benchmarks.participants.service_inserts import FLUSH_TIMEOUT
from benchmarks.participants.service_reads import PREFETCH
from benchmarks.participants.tensors import as_arrays, as_tensordict
from benchmarks.work import BATCH, Live, Work, WrongRowsError
from tdreplay.rate_limiters import Queue
from tdreplay.samplers import Fifo
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

ROWS = 16 * BATCH
"""Of either table, and so of what may wait in the queue."""
UNIFORM, QUEUE = "uniform", "queue"


def main(task: Task) -> None:
    """Measures both, with so many batches as the task's variant says."""
    work, batches = Work(task.work), int(task.variant)
    with spawn_server(ServerConfig(address="127.0.0.1:0")) as server, ExitStack() as stack:
        tables = {name: stack.enter_context(_table(server.address, name)) for name in (UNIFORM, QUEUE)}
        tables[UNIFORM].add_batch(as_tensordict(work.rows(0, ROWS)))
        pipe = stack.enter_context(_writing(server.address, task.work))
        _check_order(work, tables[QUEUE], pipe)
        laps = {name: partial(_lap, pipe, name, buffer, batches) for name, buffer in tables.items()}
        for name, seconds in in_turn(laps, task.seconds).items():
            Report(task).speed(f"stream, {name}", BATCH, seconds)


def _table(address: str, name: str) -> RemoteReplayBuffer:
    if name == UNIFORM:
        return RemoteReplayBuffer(address, table=name, buffer_size=ROWS, transport="shared_memory")
    return RemoteReplayBuffer(
        address, table=name, buffer_size=ROWS, transport="shared_memory", sampler=Fifo(), rate_limiter=Queue(ROWS), max_times_sampled=1
    )


def _lap(pipe: Connection, name: str, buffer: RemoteReplayBuffer, batches: int, _: float) -> float:
    """The seconds of a batch that comes and goes. The first one, before the clock starts, opens the stream."""
    pipe.send((name, 1))
    with buffer.stream(BATCH, prefetch=PREFETCH["image"]) as stream:
        next(stream)
        pipe.recv()
        start = time.perf_counter()
        pipe.send((name, batches))
        for _ in range(batches):
            next(stream)
        pipe.recv()
        return (time.perf_counter() - start) / batches


def _check_order(work: Work, queue: RemoteReplayBuffer, pipe: Connection) -> None:
    pipe.send((QUEUE, 4))
    with queue.stream(BATCH) as stream:
        numbers = np.concatenate([work.check(as_arrays(next(stream).select(*work.rows(0, 1))), Live(0, BATCH)) for _ in range(4)])
    pipe.recv()
    if not np.array_equal(numbers, np.tile(np.arange(BATCH), 4)):
        raise WrongRowsError("the queue did not bring each row once, in order")


@contextmanager
def _writing(address: str, name: str) -> Iterator[Connection]:
    """The writer's process while the context is open. Told (table, batches), it inserts them and says that they are there."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=write, args=(there, address, name), daemon=True)
    process.start()
    try:
        yield here
    finally:
        process.kill()
        process.join()


def write(pipe: Connection, address: str, name: str) -> None:
    """Inserts what it is told to until the process is ended."""
    batch = as_tensordict(Work(name).rows(0, BATCH))
    with ExitStack() as stack:
        buffers = {table: stack.enter_context(RemoteReplayBuffer(address, table=table, transport="shared_memory")) for table in (UNIFORM, QUEUE)}
        writers = {table: stack.enter_context(buffer.writer()) for table, buffer in buffers.items()}
        while True:
            table, batches = pipe.recv()
            for _ in range(batches):
                writers[table].extend(batch)
            writers[table].flush(FLUSH_TIMEOUT)
            pipe.send(table)


if __name__ == "__main__":
    main(Task.from_command_line())
