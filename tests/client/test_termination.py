"""SIGTERM in the middle of work: what was acknowledged is there, and inserts, streams and epochs go on with the next server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from restarts import Phoenix

from tdreplay_client import RemoteReplayBuffer

ROWS, EPOCHS, ACTORS = 2000, 10, 20
TIMEOUT = 60.0


class Actor:
    """A thread that adds one row after the other, and notes those that were acknowledged.

    Attributes:
        acknowledged: their numbers.
    """

    def __init__(self, buffer: RemoteReplayBuffer, number: int) -> None:
        self._buffer, self._first = buffer, ROWS + number * 1_000_000
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._act)
        self.acknowledged: list[int] = []
        self._more = threading.Condition()

    def _act(self) -> None:
        while not self._enough.is_set():
            number = self._first + len(self.acknowledged)
            self._buffer.add({"n": number})
            with self._more:
                self.acknowledged.append(number)
                self._more.notify()

    def await_rows(self, rows: int) -> None:
        """Returns when so many more were acknowledged."""
        with self._more:
            wanted = len(self.acknowledged) + rows
            assert self._more.wait_for(lambda: len(self.acknowledged) >= wanted, TIMEOUT)

    @contextmanager
    def acting(self) -> Iterator[Actor]:
        self._thread.start()
        try:
            yield self
        finally:
            self._enough.set()
            self._thread.join(TIMEOUT)
            assert not self._thread.is_alive()


def test_a_terminated_server_loses_nothing_and_the_next_one_goes_on(tmp_path):
    phoenix = Phoenix(tmp_path / "data")
    with ExitStack() as stack:
        stack.callback(phoenix.close)
        phoenix.start()
        buffers = [stack.enter_context(RemoteReplayBuffer(phoenix.address, buffer_size=200_000, timeout=TIMEOUT)) for _ in range(4)]
        buffers[0].add_batch({"n": torch.arange(ROWS)})
        epochs = [stack.enter_context(buffers[turn % 4].epochs(64, shuffle=True, seed=turn)) for turn in range(EPOCHS)]
        seen = [[next(batches)["n"] for _ in range(3)] for batches in epochs]
        batches = stack.enter_context(buffers[1].stream(16, prefetch=4))
        actors = [stack.enter_context(Actor(buffers[number % 4], number).acting()) for number in range(ACTORS)]
        for actor in actors:
            actor.await_rows(5)
        next(batches)

        phoenix.server.child.process.terminate()
        assert phoenix.server.child.wait() == 0
        before = [list(actor.acknowledged) for actor in actors]
        phoenix.close()
        phoenix.start()
        with RemoteReplayBuffer(phoenix.address, timeout=TIMEOUT) as another:
            stored = set(another.sample_all()["n"].tolist())
        assert stored.issuperset(range(ROWS))
        assert all(stored.issuperset(numbers) for numbers in before)

        for actor in actors:
            actor.await_rows(2)
        for _ in range(20):
            next(batches)
        for taken, rest in zip(seen, epochs, strict=True):
            taken += [batch["n"] for batch in rest]
            assert sorted(torch.cat(taken).tolist()) == list(range(ROWS))
    check_once(phoenix, [number for actor in actors for number in actor.acknowledged])


def check_once(phoenix: Phoenix, acknowledged: list[int]) -> None:
    """All that was acknowledged is stored, each row once, in a server that starts again."""
    phoenix.start()
    with RemoteReplayBuffer(phoenix.address, timeout=TIMEOUT) as buffer:
        stored = buffer.sample_all()["n"].tolist()
    phoenix.close()
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
