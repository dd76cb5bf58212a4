"""What one shard carries: rows a second, what each costs the server's own cores, and how long single calls take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import psutil
import torch
from tensordict import TensorDict, TensorDictBase

from benchmarks.work import BATCH, Live, Work
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, ServerProcess, spawn_server

__all__ = ["PHASES", "Carried", "Phase", "Turns", "carried", "check", "cores", "served", "took_turns"]

CAPACITY = {"small": 100_000, "image": 2_000}
ACTOR_ROWS, LEARNER_BATCHES = 100, 50
"""Rows a second of an actor, and batches a second of a learner, by which both are counted."""
CHUNK = 500
Steps: TypeAlias = Generator[int, None, None]


@dataclass(frozen=True)
class Phase:
    """A kind of work at one shard.

    Attributes:
        what: in words.
        work: the rows: "small" or "image".
        steps: does the work, step by step, and gives how many rows each step was.
        transport: of the client.
        client_rows: rows a second of one client of this kind, for counting how many of them a core of the server carries.
        clients: what such clients are called; '': they are not counted.
    """

    what: str
    work: str
    steps: Callable[[RemoteReplayBuffer, Work], Steps]
    transport: str = "grpc"
    client_rows: int = ACTOR_ROWS
    clients: str = ""


@dataclass(frozen=True)
class Carried:
    """What came of a phase.

    Attributes:
        phase: which.
        rows: a second, of one client.
        row_bytes: bytes of one row.
        server: seconds of a core that the server spent on a row.
        client: the same of the client.
    """

    phase: Phase
    rows: float
    row_bytes: int
    server: float
    client: float

    @property
    def core_rows(self) -> float:
        """Rows a second for which one core of the server is enough."""
        return 1 / self.server

    @property
    def clients(self) -> float:
        """Clients of this kind that a core of the server carries."""
        return self.core_rows / self.phase.client_rows


def batch_of(work: Work, first: int, count: int) -> TensorDict:
    """Rows as the buffers take them."""
    return TensorDict({name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in work.rows(first, count).items()}, [count])


def check(work: Work, batch: TensorDictBase, rows: int) -> None:
    """Each row of a batch is one of the first `rows` rows, and whole.

    Raises:
        WrongRowsError: one is not.
    """
    work.check({name: batch[name].numpy() for name in work.rows(0, 1)}, Live(0, rows))


def _appends(buffer: RemoteReplayBuffer, work: Work) -> Steps:
    """Single rows, sent in blocks of 10: what an actor of 100 rows a second sends in 0.1 s."""
    rows = work.steps(0, 10)
    with buffer.writer(flush_rows=len(rows)) as writer:
        while True:
            for row in rows:
                writer.append(row)
            yield len(rows)


def _extends(buffer: RemoteReplayBuffer, work: Work) -> Steps:
    """Batches, several on their way."""
    rows = batch_of(work, 0, BATCH)
    with buffer.writer(max_in_flight=4) as writer:
        while True:
            writer.extend(rows)
            yield BATCH


def _streams(buffer: RemoteReplayBuffer, work: Work, rows: int = BATCH) -> Steps:
    """Batches of a learner."""
    with buffer.stream(rows, prefetch=4) as batches:
        check(work, next(batches), CAPACITY[work.name])
        for _ in batches:
            yield rows


def _samples(buffer: RemoteReplayBuffer, _work: Work) -> Steps:
    """Single batches, one after the other."""
    while True:
        buffer.sample_batch(BATCH)
        yield BATCH


LEARNER_ROWS = LEARNER_BATCHES * BATCH
FEW = 64
"""Rows that one of many shards sends at once."""
PHASES = (
    Phase("stream, batches of 256", "small", _streams, client_rows=LEARNER_ROWS, clients="learners"),
    Phase(f"stream, batches of {FEW}", "small", partial(_streams, rows=FEW), client_rows=LEARNER_ROWS, clients="learners"),
    Phase("stream, batches of 256", "image", _streams, client_rows=LEARNER_ROWS, clients="learners"),
    Phase("the same in shared memory", "image", _streams, "auto", LEARNER_ROWS, "learners"),
    Phase("single batches of 256", "small", _samples, client_rows=LEARNER_ROWS, clients="learners"),
    Phase("append, blocks of 10", "small", _appends, clients="actors"),
    Phase("append, blocks of 10", "image", _appends, clients="actors"),
    Phase("extend, blocks of 256", "small", _extends),
    Phase("extend, blocks of 256", "image", _extends),
)


@contextmanager
def served(work: Work, first: int = 0, rows: int | None = None) -> Iterator[ServerProcess]:
    """A server in a process of its own, whose table is full: of the rows from `first` on."""
    count = CAPACITY[work.name] if rows is None else rows
    with spawn_server(ServerConfig(address="127.0.0.1:0", buffer_size=count)) as server:
        with RemoteReplayBuffer(server.address) as buffer:
            for at in range(0, count, CHUNK):
                buffer.add_batch(batch_of(work, first + at, min(CHUNK, count - at)))
        yield server


def seconds_of(server: psutil.Process) -> float:
    """Seconds of a core that a process has spent so far."""
    times = server.cpu_times()
    return float(times.user + times.system)


def carried(server: ServerProcess, phase: Phase, work: Work, seconds: float) -> Carried:
    """Lets one client work at a server for so long."""
    process = psutil.Process(server.pid)
    with RemoteReplayBuffer(server.address, transport="grpc" if phase.transport == "grpc" else "auto") as buffer:
        steps = phase.steps(buffer, work)
        for _ in range(4):
            next(steps)  # Connections, threads and shared memory are there.
        server_before, client_before, begin, rows = seconds_of(process), time.process_time(), time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            rows += next(steps)
        wall, client, server_spent = time.perf_counter() - begin, time.process_time() - client_before, seconds_of(process) - server_before
        steps.close()
    return Carried(phase, rows / wall, work.row_bytes, server_spent / rows, client / rows)


@dataclass(frozen=True)
class Turns:
    """What calls that took turns took.

    Attributes:
        seconds: name -> seconds of each call.
        client: name -> seconds of a core that this process spent on each call, on average.
        server: name -> the same of all server processes together.
    """

    seconds: dict[str, list[float]]
    client: dict[str, float]
    server: dict[str, float]


def took_turns(calls: Mapping[str, Callable[[], object]], servers: list[ServerProcess], turns: int, calls_a_turn: int = 20) -> Turns:
    """Calls of several kinds, each kind so many times in turn, so that what else the machine does hits all of them.

    Args:
        calls: name -> the call.
        servers: the processes that answer.
        turns: of each kind.
        calls_a_turn: that are measured. One before them is not.
    """
    processes = [psutil.Process(server.pid) for server in servers]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    client, spent = dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0.0)
    for _ in range(turns):
        for name, call in calls.items():
            call()
            before = sum(map(seconds_of, processes)), time.process_time()
            for _ in range(calls_a_turn):
                begin = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - begin)
            client[name] += time.process_time() - before[1]
            spent[name] += sum(map(seconds_of, processes)) - before[0]
    count = turns * calls_a_turn
    return Turns(seconds, {name: total / count for name, total in client.items()}, {name: total / count for name, total in spent.items()})


def cores() -> int:
    """That this process and its children may use."""
    return len(os.sched_getaffinity(0))
