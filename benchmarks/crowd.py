"""A crowd on one server: a thousand writers with open streams, of whom some are busy, learners, and callers that look. ``make bench-crowd``.

It says what each kind got, how long health checks and descriptions took, and what threads and memory the server needed. It fails where anybody was
refused, or a busy writer or a learner got nothing. All share the machine's cores with the server.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import statistics
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import grpc
import psutil
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.load import OPTIONS, block, stub_of
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["Crowd", "Found", "measured"]

CONTEXT = multiprocessing.get_context("spawn")
BATCH, ROWS = 64, 8
STREAMS_PER_CONNECTION = 10


@dataclass(frozen=True)
class Crowd:
    """Who comes.

    Attributes:
        address: of the server.
        writers: open streams of inserts.
        busy: how many of them insert, each a block as soon as the one before is acknowledged, but at most `pace` a second. The others are idle.
        learners: streams of batches, each with a window of 2 batches, and the same pace.
        pace: blocks, and batches, a second of each.
        looks: descriptions and health checks a second, half of them each.
        seconds: how long.
        processes: that the writers are spread over.
    """

    address: str
    writers: int = 1000
    busy: int = 256
    learners: int = 16
    pace: float = 2.0
    looks: float = 200.0
    seconds: float = 60.0
    processes: int = 2


@dataclass
class Found:
    """What came of it.

    Attributes:
        refused: calls that ended with an error, by status.
        inserted: blocks that each busy writer got acknowledged.
        batches: batches that each learner got.
        health: seconds that each health check took.
        describe: seconds that each description took.
        threads: the most threads of the server.
        rss: the most bytes of the server.
    """

    refused: dict[str, int]
    inserted: list[int]
    batches: list[int]
    health: list[float]
    describe: list[float]
    threads: int = 0
    rss: int = 0


class _Stream:
    """A stream that a thread drives: one thread may drive many in turn, because each message is answered by one."""

    def __init__(self, open_call: Any) -> None:
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers = open_call(iter(self.requests.get, None))
        self.count = 0

    def ask(self, request: Any) -> None:
        self.requests.put(request)

    def take(self) -> None:
        next(self.answers)
        self.count += 1


def _channels(address: str, count: int) -> list[grpc.Channel]:
    return [grpc.insecure_channel(address, options=OPTIONS) for _ in range(max(1, count))]


def _failures(refused: queue.SimpleQueue[str], act: Any) -> None:
    try:
        act()
    except grpc.RpcError as error:
        refused.put(str(error.code()))


def _paced(until: float, pace: float) -> Any:
    """The moments of a beat, up to `until`: one that is late is not made up for."""
    due = time.monotonic()
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        yield
        due = max(due + 1 / pace, time.monotonic())


class _Writers:
    """The streams of inserts of one process."""

    def __init__(self, crowd: Crowd, writers: int) -> None:
        self._crowd, self._body = crowd, block(ROWS)
        self.refused = queue.SimpleQueue[str]()
        channels = _channels(crowd.address, -(-writers // STREAMS_PER_CONNECTION))
        self.streams = [_Stream(stub_of(channel).AddBatch) for channel, _ in zip(itertools.cycle(channels), range(writers), strict=False)]
        self._names, self._numbers = [uuid.uuid4().hex for _ in self.streams], [itertools.count(1) for _ in self.streams]

    def insert(self, at: int) -> None:
        """A block into one of the streams, until it is acknowledged."""
        request = pb.AddBatchRequest(table="default", block=self._body, writer_id=self._names[at], sequence=next(self._numbers[at]))
        self.streams[at].ask(request)
        self.streams[at].take()

    def insert_into_all(self) -> None:
        """A block into each."""
        for at in range(len(self.streams)):
            _failures(self.refused, lambda at=at: self.insert(at))

    def work(self, at: int, end: float) -> None:
        """Blocks into one of the streams, at the crowd's pace. The writers do not begin at once."""
        time.sleep(at % 32 / 32 / self._crowd.pace)
        for _ in _paced(end, self._crowd.pace):
            self.insert(at)


def write(crowd: Crowd, writers: int, busy: int, ready: Any, out: Any) -> None:
    """In a process of its own: opens streams, and inserts into some of them; into each of them goes a block at the start and at the end."""
    own = _Writers(crowd, writers)
    own.insert_into_all()
    ready.wait()
    end = time.monotonic() + crowd.seconds
    _together(own.refused, [lambda at=at: own.work(at, end) for at in range(busy)])
    own.insert_into_all()
    out.put(("inserted", [stream.count - 2 for stream in own.streams[:busy]], _all(own.refused)))
    for stream in own.streams:
        stream.ask(None)


def learn(crowd: Crowd, ready: Any, out: Any) -> None:
    """In a process of its own: the learners."""
    refused, counts = queue.SimpleQueue[str](), [0] * crowd.learners
    channels = _channels(crowd.address, crowd.learners)
    ready.wait()
    end = time.monotonic() + crowd.seconds

    def work(at: int) -> None:
        stream = _Stream(stub_of(channels[at]).Sample)
        stream.ask(pb.SampleRequest(table="default", batch_size=BATCH, credits=2))
        for _ in _paced(end, crowd.pace):
            stream.take()
            stream.ask(pb.SampleRequest(credits=1))
            counts[at] = stream.count
        stream.ask(None)

    _together(refused, [lambda at=at: work(at) for at in range(crowd.learners)])
    out.put(("batches", counts, _all(refused)))


def look(crowd: Crowd, ready: Any, out: Any) -> None:
    """In a process of its own: descriptions and health checks at a beat, each kind in a thread and over a connection of its own."""
    refused = queue.SimpleQueue[str]()
    times: dict[str, list[float]] = {"health": [], "describe": []}
    health, describe = _channels(crowd.address, 2)
    acts = {
        "health": lambda: health_pb2_grpc.HealthStub(health).Check(health_pb2.HealthCheckRequest(), timeout=20),
        "describe": lambda: stub_of(describe).Describe(pb.DescribeRequest(table="default"), timeout=20),
    }
    ready.wait()
    end = time.monotonic() + crowd.seconds

    def work(kind: str) -> None:
        for _ in _paced(end, crowd.looks / 2):
            start = time.perf_counter()
            acts[kind]()
            times[kind].append(time.perf_counter() - start)

    _together(refused, [lambda kind=kind: work(kind) for kind in acts])
    out.put(("looks", times, _all(refused)))


def _together(refused: queue.SimpleQueue[str], acts: list[Any]) -> None:
    """Runs each in a thread of its own, to the end of all."""
    workers = [threading.Thread(target=_failures, args=(refused, act)) for act in acts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _all(refused: queue.SimpleQueue[str]) -> list[str]:
    return [refused.get() for _ in range(refused.qsize())]


def measured(crowd: Crowd, pid: int) -> Found:
    """Lets a crowd at a server, whose process is `pid`."""
    out, server = CONTEXT.Queue(), psutil.Process(pid)
    each, busy = crowd.writers // crowd.processes, crowd.busy // crowd.processes
    works: list[tuple[Any, tuple[Any, ...]]] = [(write, (crowd, each, busy)) for _ in range(crowd.processes)]
    works += [(learn, (crowd,)), (look, (crowd,))]
    ready = CONTEXT.Barrier(len(works))
    processes = [CONTEXT.Process(target=work, args=(*arguments, ready, out), daemon=True) for work, arguments in works]
    for process in processes:
        process.start()
    found = Found({}, [], [], [], [])
    for kind, values, refused in _gathered(processes, out, found, server):
        found.refused = {code: found.refused.get(code, 0) + refused.count(code) for code in {*found.refused, *refused}}
        if kind == "looks":
            found.health, found.describe = values["health"], values["describe"]
        else:
            getattr(found, kind).extend(values)
    return found


def _gathered(processes: list[Any], out: Any, found: Found, server: psutil.Process) -> list[Any]:
    """What each process found. Meanwhile it notes what the server needs."""
    got: list[Any] = []
    while len(got) < len(processes):
        try:
            got.append(out.get(timeout=0.5))
        except queue.Empty:
            if any(process.exitcode for process in processes):
                raise RuntimeError("a process of the crowd ended before its time") from None
        found.threads, found.rss = max(found.threads, server.num_threads()), max(found.rss, server.memory_info().rss)
    for process in processes:
        process.join(10)
    return got


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def told(found: Found, crowd: Crowd) -> str:
    """What came of it, in lines."""
    lines = [
        f"{crowd.writers} writers open, {crowd.busy} busy, {crowd.learners} learners, {crowd.looks:.0f} looks a second, {crowd.seconds:.0f} s",
        f"refused: {found.refused or 'nobody'}",
        f"blocks a busy writer: least {min(found.inserted)}, median {statistics.median(found.inserted):.0f}, most {max(found.inserted)}",
        f"batches a learner: least {min(found.batches)}, median {statistics.median(found.batches):.0f}, most {max(found.batches)}",
    ]
    for name, times in (("health", found.health), ("describe", found.describe)):
        shown = ", ".join(f"p{share * 100:g} {1e3 * quantile(times, share):.1f} ms" for share in (0.5, 0.99, 0.999))
        lines.append(f"{name}: {len(times)} calls, {shown}")
    lines.append(f"server: {found.threads} threads, {found.rss / (1 << 20):.0f} MiB")
    return "\n".join(lines)


def main(
    seconds: Annotated[float, typer.Option(help="How long.")] = 60.0,
    writers: Annotated[int, typer.Option(help="Writers with an open stream.")] = 1000,
    busy: Annotated[int, typer.Option(help="How many of them are busy.")] = 256,
    pace: Annotated[float, typer.Option(help="Blocks a second of a busy writer, and batches a second of a learner.")] = 2.0,
) -> None:
    """Lets a crowd at a server of its own, and says what came of it. Exit status 1 where anybody was refused or starved."""
    from tdreplay_server import ServerConfig, spawn_server

    with spawn_server(ServerConfig(address="127.0.0.1:0", buffer_size=100_000)) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub_of(channel).Add(pb.AddRequest(table="default", block=block(1000)), timeout=60)
        crowd = Crowd(server.address, seconds=seconds, writers=writers, busy=busy, pace=pace)
        found = measured(crowd, server.pid)
    print(told(found, crowd))
    sys.exit(bool(found.refused) or min(found.inserted) == 0 or min(found.batches) == 0)


if __name__ == "__main__":
    typer.run(main)
