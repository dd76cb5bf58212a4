"""Actors and learners under a rate limiter, and SIGKILL of the server: at every moment that the server says, the ratio is inside the error buffer.

TDREPLAY_KILLS: from 50 on the long form runs, of a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from processes import Servers
from raw_tables import RawTable, channel_to

from tdreplay.rate_limiters import SamplesPerInsert
from tdreplay_client import RemoteReplayBuffer

SECONDS = 60.0 if int(os.environ.get("TDREPLAY_KILLS", "0")) >= 50 else 4.0
ACTORS, LEARNERS, PREFETCH, KILLS = 8, 4, 16, 3
ROWS, BATCH, BUFFER_SIZE = 8, 32, 2000
LIMITER = SamplesPerInsert(4.0, min_size=100, error_buffer=300)
LOWEST, HIGHEST = 100.0, 700.0
"""Of the balance: samples_per_insert times min_size, less and plus the error buffer."""
pytestmark = pytest.mark.timeout(300)


class Record:
    """What the server said of the table, again and again: each answer is of one moment.

    Attributes:
        moments: (rows that were inserted, rows that were drawn) of each answer.
    """

    def __init__(self, table: RawTable) -> None:
        self.table, self.moments, self._stop = table, [], threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Record:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            found = self.table.describe()
            self.moments.append((found.insert_count, found.sample_count))

    def faults(self) -> list[tuple[int, int]]:
        """The moments at which somebody was further ahead than the error buffer allows."""
        balances = [(inserted, drawn, LIMITER.samples_per_insert * inserted - drawn) for inserted, drawn in self.moments]
        return [(inserted, drawn) for inserted, drawn, balance in balances if balance > HIGHEST or (drawn and balance < LOWEST)]


@contextmanager
def at_work(works: list[Callable[[], None]]) -> Iterator[None]:
    """Runs each in a thread. At the end all of them have ended, and the first error is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised at the end.
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_the_ratio_is_inside_the_error_buffer_at_every_moment_also_over_kills(tmp_path):
    servers, stop, taken = Servers(tmp_path / "data"), threading.Event(), []
    with ExitStack() as stack:
        server = stack.enter_context(servers.running())

        def opened() -> RemoteReplayBuffer:
            return stack.enter_context(
                RemoteReplayBuffer(servers.address, table="limited", buffer_size=BUFFER_SIZE, rate_limiter=LIMITER, timeout=60)
            )

        actors, learners = [opened() for _ in range(ACTORS)], [opened().stream(BATCH, prefetch=PREFETCH) for _ in range(LEARNERS)]
        record = Record(RawTable(stack.enter_context(channel_to(servers.address)), "limited"))

        def act(buffer: RemoteReplayBuffer) -> None:
            while not stop.is_set():
                buffer.add_batch({"number": torch.arange(ROWS)})

        with record, at_work([lambda stream=stream: taken.extend(len(batch) for batch in stream) for stream in learners]):
            with at_work([lambda buffer=buffer: act(buffer) for buffer in actors]):
                for _ in range(KILLS):
                    time.sleep(SECONDS / (KILLS + 1))
                    server.kill()
                    server.wait()
                    server = stack.enter_context(servers.running())
                time.sleep(SECONDS / (KILLS + 1))
                stop.set()
            waits = actors[0].describe()
            for stream in learners:
                stream.close()
    inserted, drawn = record.moments[-1]
    balances = [LIMITER.samples_per_insert * i - s for i, s in record.moments if s]
    print(
        f"{inserted} rows inserted, {drawn} drawn, {sum(taken)} came; {len(record.moments)} moments, balance {min(balances)} to {max(balances)}; "
        f"inserts waited {waits.inserts.seconds:.1f} s, batches {waits.samples.seconds:.1f} s since the last kill"
    )
    assert record.faults() == []
    assert all(after >= before for one, two in zip(record.moments, record.moments[1:], strict=False) for before, after in zip(one, two, strict=True))
    assert drawn > 20 * BATCH
    assert sum(taken) >= drawn
    assert waits.inserts.seconds + waits.samples.seconds > 0
