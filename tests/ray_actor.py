"""Processes at work on a cluster: actors of Ray that write rows, learners that read batches, and the rows."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
import torch
from tensordict import TensorDict

SECONDS = 100.0
APART = 10_000_000
"""Between the first rows of two writers."""


def numbered(start: int, stop: int) -> TensorDict:
    """Rows that tell which rows they are."""
    return TensorDict({"number": torch.arange(start, stop)}, [stop - start])


class Learner:
    """Reads batches one after the other, in a thread, and knows the longest pause between two of them.

    Args:
        buffer: What it reads; it closes it.
        streams: Whether it reads a stream, and not single batches.
    """

    def __init__(self, buffer: Any, *, streams: bool = False) -> None:
        self._buffer, self._streams, self._ended = buffer, streams, threading.Event()
        self._batches, self._longest, self._lost, self._error = 0, 0.0, 0, ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._buffer:
                self._learn()
        except Exception as error:  # Whoever asks is told.
            self._error = repr(error)
            raise

    def _learn(self) -> None:
        batches = self._buffer.stream(32) if self._streams else None
        before = None
        while not self._ended.is_set():
            batch = next(batches) if batches is not None else self._buffer.sample_batch(32, wait=True)
            now = time.monotonic()
            self._longest = max(self._longest, now - (before or now))
            self._lost += bool(batch["lost_shards"].any())
            self._batches, before = self._batches + 1, now
            self._ended.wait(0.005)
        if batches is not None:
            batches.close()

    def batches(self) -> int:
        """How many it has read."""
        assert not self._error, self._error
        return self._batches

    def longest_pause(self, *, anew: bool = False) -> float:
        """The longest time between two batches, in seconds, so far. With `anew` it is counted anew from now on."""
        found = self._longest
        self._longest = 0.0 if anew else found
        return found

    def without_a_shard(self) -> int:
        """How many batches say that a shard was lost."""
        return self._lost

    def stop(self) -> int:
        """Ends. How many batches it has read."""
        self._ended.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.batches()


RayLearner = ray.remote(num_cpus=0, max_restarts=0)(Learner)


@ray.remote(num_cpus=0, max_restarts=0)
class Actor:
    """Writers that write rows one after the other, each in a thread. The buffer came to it in a pickle.

    Args:
        buffer: Where they write.
        first: The number of its first writer among those of all actors.
        writers: How many there are. Rows of writer w have the numbers from w * APART on.
        pause: Seconds between two rows of a writer.
    """

    def __init__(self, buffer: Any, first: int = 0, writers: int = 1, pause: float = 0.002) -> None:
        self._buffer, self._stop, self._pause = buffer, threading.Event(), pause
        self._written, self._errors = dict.fromkeys(range(first, first + writers), 0), list[str]()
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in self._written]
        for thread in self._threads:
            thread.start()

    def _write(self, writer_number: int) -> None:
        try:
            with self._buffer.writer(flush_rows=4) as writer:
                while not self._stop.is_set():
                    writer.append({"number": torch.tensor(writer_number * APART + self._written[writer_number])})
                    self._written[writer_number] += 1
                    self._stop.wait(self._pause)
        except Exception as error:  # Whoever asks is told.
            self._errors.append(repr(error))
            raise

    def written(self) -> int:
        """How many rows the slowest writer wrote."""
        assert not self._errors, self._errors
        return min(self._written.values())

    def stop(self) -> list[int]:
        """Ends. The numbers of the rows that were written, all of which were acknowledged."""
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self._errors, self._errors
        return [row for number, written in self._written.items() for row in range(number * APART, number * APART + written)]
