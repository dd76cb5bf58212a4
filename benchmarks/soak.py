"""Mixed traffic for a long time: does anything grow?

One server, and one process of long-lived clients: actors with writers, learners with streams that update priorities, epochs, draws, descriptions, and
the same through asyncio, with small rows and with rows that go through shared memory. Beside them clients come and go: they open a buffer, a writer
and a stream, and close them, leave them open, or are killed. With ``--restart-every`` the server is restarted now and then, on its directory.

Of the server and of the long-lived clients four things are looked at each second: anonymous memory (not the mapped files of the rows), descriptors,
threads, and shared memory. The first third of the time is warm-up. Of the rest, the median of the last third is compared with the median of the first
third: medians, because one full garbage collection or one client that just came would else decide. More than the margin is growth:

- memory: 16 MiB, or a tenth of what there was. The long-lived clients have two arenas of glibc: it would give their forty threads many, which fill
  for many minutes and look like growth, though nothing is lost.
- descriptors and threads: 8. Clients come and go.
- shared memory: 16 MiB. A stream of large batches has that much, and some open and close.

A leak of a kilobyte for each client that comes and goes is found in half an hour, and one for each call in a minute.
The slope (the median of the slopes between all pairs of looks, after Theil and Sen) is printed as growth in an hour, and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import itertools
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from tdreplay.errors import ReplayError
from tdreplay_client import AsyncReplayBuffer, RemoteReplayBuffer
from tdreplay_server import ServerConfig, ServerProcess, spawn_server

CAPACITY, BATCH = 2000, 32
TABLES = {"small": (4,), "large": (64, 64, 16)}  # Elements of a row: 16 B, and 256 KiB, of which batches go through shared memory.
LARGE_CAPACITY = 64
PAUSE = 0.02
"""Seconds between two calls of a client: the load is to be mixed and long, and not high."""
LIFETIME = 3.0
"""Seconds after which a client that comes and goes is killed, where it did not go by itself."""
M_ARENA_MAX = -8  # From glibc's malloc.h.
TIMEOUT = 60.0

_forking = multiprocessing.get_context("forkserver")


# -- what is looked at ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Looks:
    """What was seen of a process: a list of figures by what they are, and when."""

    pid: int
    times: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def look(self) -> None:
        """Adds what there is now."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        memory, shared = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem"))
        now = {"memory": memory, "shared memory": shared, "threads": int(status["Threads"]), "descriptors": self._descriptors()}
        self.times.append(time.monotonic())
        for name, figure in now.items():
            self.figures.setdefault(name, []).append(figure)

    def _descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


MARGINS: dict[str, Callable[[float], float]] = {
    "memory": lambda before: max(16.0, before / 10),
    "shared memory": lambda _: 16.0,
    "threads": lambda _: 8.0,
    "descriptors": lambda _: 8.0,
}
"""How much more there may be at the end: memory in MiB, the others in numbers."""


def judged(who: str, looks: Looks) -> Iterator[tuple[str, bool]]:
    """A line for each figure of a process, and whether it did not grow."""
    for name, figures in looks.figures.items():
        settled, times = figures[len(figures) // 3 :], looks.times[len(figures) // 3 :]
        third = max(1, len(settled) // 3)
        before, after = statistics.median(settled[:third]), statistics.median(settled[-third:])
        fine = after - before <= MARGINS[name](before)
        slope = theil_sen(times, settled) * 3600
        line = f"{who:8} {name:14} {before:8.1f} -> {after:8.1f}   highest {max(settled):8.1f}   slope {slope:+8.1f} an hour"
        yield f"{line}   {'' if fine else 'GROWS'}", fine


def theil_sen(times: list[float], figures: list[float]) -> float:
    """The median of the slopes between pairs: of at most some thousand of them."""
    step = max(1, len(times) // 60)
    looks = list(zip(times, figures, strict=True))[::step]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(looks, 2)]
    return statistics.median(slopes) if slopes else 0.0


# -- clients that stay ------------------------------------------------------------------------------------------------------------------------


def rows(table: str, n: int) -> dict[str, torch.Tensor]:
    """So many rows of a table."""
    return {"x": torch.rand(n, *TABLES[table]), "n": torch.arange(n)}


def opened(address: str, table: str) -> RemoteReplayBuffer:
    """A buffer over a table, which is made where it is not there."""
    size = CAPACITY if table == "small" else LARGE_CAPACITY
    return RemoteReplayBuffer(address, table=table, buffer_size=size, sampler="prioritized", timeout=TIMEOUT)


def write(buffer: RemoteReplayBuffer, table: str) -> Iterator[None]:
    """Writes through one writer after the other."""
    while True:
        with buffer.writer(flush_rows=8) as writer:
            for _ in range(200):
                writer.append({name: column[0] for name, column in rows(table, 1).items()})
                writer.extend(rows(table, 4))
                yield


def learn(buffer: RemoteReplayBuffer) -> Iterator[None]:
    """Takes batches of one stream after the other, and gives their rows priorities."""
    while True:
        with buffer.stream(BATCH, prefetch=2) as batches:
            for batch in itertools.islice(batches, 200):
                batches.update_priorities(batch, torch.rand(BATCH) + 0.01)
                yield


def look_around(buffer: RemoteReplayBuffer, table: str) -> Iterator[None]:
    """Single calls of each kind, and epochs."""
    while True:
        buffer.add_batch(rows(table, 2))
        buffer.update_priorities(buffer.sample_batch(4)["row_id"], 1.0)
        buffer.describe()
        yield
        with buffer.epochs(BATCH, shuffle=True) as batches:
            for _ in itertools.islice(batches, 20):
                yield
        RemoteReplayBuffer.tables(buffer.address)


def keep_on(work: Iterator[None], over: threading.Event) -> None:
    """Goes on with some work until it is over."""
    with suppress(ReplayError):  # At the end the server may be gone.
        for _ in work:
            if over.wait(PAUSE):
                return


async def use_asyncio(address: str, over: threading.Event) -> None:
    """The same through asyncio, with timeouts that cancel calls."""
    async with AsyncReplayBuffer(address, table="small", timeout=TIMEOUT) as buffer:
        while not over.is_set():
            async with buffer.writer(flush_rows=8) as writer, buffer.stream(BATCH) as batches:
                for _ in range(100):
                    await writer.append({name: column[0] for name, column in rows("small", 1).items()})
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(anext(batches), random.uniform(0.0005, 0.01))  # noqa: S311 - it keeps no secret.
                    await buffer.sample_batch(4)
                    await asyncio.sleep(PAUSE)


def stay(address: str, over: threading.Event) -> None:
    """In the child: all long-lived clients."""
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        works: list[Iterator[None]] = []
        for table in TABLES:
            buffer = stack.enter_context(opened(address, table))
            works += [write(buffer, table), learn(buffer), look_around(buffer, table)]
        threads = [threading.Thread(target=keep_on, args=(work, over)) for work in works]
        for thread in threads:
            thread.start()
        with suppress(ReplayError):
            asyncio.run(use_asyncio(address, over))
        for thread in threads:
            thread.join()
        for work in works:
            work.close()  # type: ignore[attr-defined]


# -- clients that come and go -----------------------------------------------------------------------------------------------------------------


def come_and_go(address: str, number: int) -> None:
    """In the child: some work, then the client closes what it has, leaves it open, or waits until it is killed."""
    torch.set_num_threads(1)
    table = list(TABLES)[number % 2]
    buffer = opened(address, table)
    writer, batches = buffer.writer(), buffer.stream(BATCH)
    for _ in range(5):
        writer.extend(rows(table, 4))
        batches.update_priorities(next(batches), 1.0)
    end = number % 3
    if end == 0:
        writer.close()
        batches.close()
        buffer.close()
    elif end == 1:
        time.sleep(LIFETIME * 2)


def started(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A child that does some work."""
    process = _forking.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def end(process: ForkServerProcess) -> None:
    """Kills a client that did not go by itself."""
    process.join(LIFETIME)
    process.kill()
    process.join()


# -- the whole --------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Soak:
    """A soak that runs.

    Attributes:
        config: of the server.
        server: its process.
        came: how many clients came and went.
    """

    config: ServerConfig
    server: ServerProcess
    running: ExitStack
    came: int = 0

    def restart(self) -> None:
        """Ends the server, and starts another one on its directory."""
        self.running.close()
        self.server = self.running.enter_context(spawn_server(self.config))

    def keep_clients_coming(self, over: threading.Event) -> None:
        """One client after the other, until it is over."""
        while not over.is_set():
            end(started(come_and_go, self.server.address, self.came))
            self.came += 1


@contextmanager
def soaking(directory: Path) -> Iterator[Soak]:
    """A server with data in `directory`."""
    config = ServerConfig(address=f"unix:{directory / 'server.sock'}", data_dir=directory / "data")
    with ExitStack() as running:
        yield Soak(config, running.enter_context(spawn_server(config)), running)


def looked_at(soak: Soak, clients: Looks, seconds: float, restart_every: float) -> Looks:
    """Looks at the server and the long-lived clients for so long; gives the looks at the server that ran last."""
    server, until = Looks(soak.server.pid), time.monotonic() + seconds
    restart = time.monotonic() + restart_every
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        if time.monotonic() >= restart:
            soak.restart()
            server, restart = Looks(soak.server.pid), time.monotonic() + restart_every
        server.look()
        clients.look()
    return server


def main() -> int:
    """Soaks, prints what was seen, and says whether nothing grew."""
    parser = argparse.ArgumentParser(description="Mixed traffic for a long time: does anything grow?")
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long; 1800 by default")
    parser.add_argument("--restart-every", type=float, default=float("inf"), help="seconds after which the server is restarted; never by default")
    arguments = parser.parse_args()
    _forking.set_forkserver_preload(["tdreplay_client.buffer", "tdreplay_client.aio.buffer"])
    over, gone = _forking.Event(), threading.Event()
    with tempfile.TemporaryDirectory() as directory, soaking(Path(directory)) as soak:
        staying = started(stay, soak.server.address, over)
        visitors = threading.Thread(target=soak.keep_clients_coming, args=(gone,))
        visitors.start()
        clients = Looks(staying.pid or 0)
        try:
            server = looked_at(soak, clients, arguments.seconds, arguments.restart_every)
        finally:
            gone.set()
            over.set()
            visitors.join()
        with RemoteReplayBuffer(soak.server.address, table="small") as buffer:
            inserted = buffer.state().insert_count
        staying.join(TIMEOUT)
    return told(soak, staying, inserted, [*judged("server", server), *judged("clients", clients)])


def told(soak: Soak, staying: ForkServerProcess, inserted: int, lines: list[tuple[str, bool]]) -> int:
    """Prints the result, and gives the exit status."""
    print(f"{soak.came} clients came and went; {inserted} small rows were inserted; the long-lived clients ended with {staying.exitcode}")
    for line, _ in lines:
        print(line)
    return 0 if all(fine for _, fine in lines) and staying.exitcode == 0 and soak.came else 1


if __name__ == "__main__":
    sys.exit(main())
