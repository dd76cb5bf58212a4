"""Writers and learners of a queue. A learner notes each batch that it takes, so that whoever kills it knows what it took."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from tdreplay.rate_limiters import Queue
from tdreplay.samplers import Fifo
from tdreplay_client import RemoteReplayBuffer

__all__ = ["BATCH", "BLOCK", "PREFETCH", "QUEUE", "Taken", "Worker", "learn", "write"]

TIMEOUT = 60.0
BATCH, BLOCK, PREFETCH, QUEUE = 20, 25, 4, 600


class Taken(NamedTuple):
    """A batch that a learner took.

    Attributes:
        moment: when: a time of `time.monotonic`, which is one clock for all processes.
        rows: of each row its writer and its number.
    """

    moment: float
    rows: list[tuple[int, int]]


@dataclass(frozen=True)
class Worker:
    """A writer or a learner.

    Attributes:
        address: of the server.
        directory: for its notes.
        number: which one it is.
    """

    address: str
    directory: str
    number: int

    def path(self, suffix: str) -> Path:
        return Path(self.directory) / f"worker-{self.number}{suffix}"

    @property
    def written(self) -> int:
        """How many rows a writer that has ended wrote."""
        return int(self.path(".written").read_text())

    @property
    def taken(self) -> list[Taken]:
        """What a learner took so far."""
        lines = self.path(".taken").read_text().splitlines(keepends=True) if self.path(".taken").exists() else []
        noted = [json.loads(line) for line in lines if line.endswith("\n")]
        return [Taken(moment, list(map(tuple, rows))) for moment, rows in noted]

    def open(self) -> RemoteReplayBuffer:
        return RemoteReplayBuffer(
            self.address, table="queue", buffer_size=QUEUE, sampler=Fifo(), rate_limiter=Queue(QUEUE), max_times_sampled=1, timeout=TIMEOUT
        )


def write(worker: Worker) -> None:
    """In the child: writes rows, in blocks, until a file says that these are enough and they make whole batches; then it notes how many it wrote."""
    torch.set_num_threads(1)
    written = 0
    with worker.open() as buffer:
        print("writes", flush=True)
        while written % BATCH or not worker.path(".enough").exists():
            numbers = torch.arange(written, written + BLOCK)
            buffer.add_batch({"writer": torch.full_like(numbers, worker.number), "number": numbers})
            written += BLOCK
    worker.path(".written").write_text(str(written))


def learn(worker: Worker) -> None:
    """In the child: takes batches until it is killed. Where a file says so, it takes no more, with batches on their way, and waits for that."""
    torch.set_num_threads(1)
    with worker.open() as buffer, buffer.stream(BATCH, prefetch=PREFETCH) as stream, worker.path(".taken").open("ab", buffering=0) as notes:
        print("learns", flush=True)
        for batch in stream:
            rows = list(zip(batch["writer"].tolist(), batch["number"].tolist(), strict=True))
            notes.write((json.dumps((time.monotonic(), rows)) + "\n").encode())
            if worker.path(".stop").exists():
                worker.path(".stopped").touch()
                time.sleep(TIMEOUT)
            time.sleep(0.01)
