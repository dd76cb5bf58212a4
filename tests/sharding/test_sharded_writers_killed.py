"""SIGKILL of one shard after the other, while writers of every kind are at work: no acknowledged row is lost, and none is stored twice."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from shard_processes import Shards

from tdreplay_client.sharding.buffer import ShardedReplayBuffer

SHARDS = 4
KILLS = 25 if os.environ.get("TDREPLAY_LONG") else 3
"""With each value of `on_loss`."""
CAPACITY = 8_000_000
EPISODE, ENVS = 7, 3
SECONDS = 120.0
pytestmark = pytest.mark.timeout(1200 if os.environ.get("TDREPLAY_LONG") else 240)


class Work:
    """Threads that write numbered rows: number n of writer w is ``w * 10^7 + n``.

    Attributes:
        acknowledged: Of each writer, how many numbers are acknowledged: all before it.
        given: How many were given.
    """

    def __init__(self, buffer: ShardedReplayBuffer, kinds: tuple[str, ...]) -> None:
        self.stop, self.errors = threading.Event(), list[BaseException]()
        self.acknowledged, self.given = Counter[int](), Counter[int]()
        work: dict[str, Callable[[ShardedReplayBuffer, int], None]] = {
            "append": self._append,
            "extend": self._extend,
            "add": self._add,
            "add_batch": self._add_batch,
            "episodes": self._episodes,
            "environments": self._environments,
        }
        self.kinds = kinds
        self._threads = [threading.Thread(target=self._run, args=(work[kind], buffer, writer)) for writer, kind in enumerate(kinds)]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[ShardedReplayBuffer, int], None], buffer: ShardedReplayBuffer, writer: int) -> None:
        try:
            work(buffer, writer)
        except BaseException as error:  # noqa: BLE001 - the test looks at it.
            self.errors.append(error)

    def _numbers(self, writer: int) -> Iterator[int]:
        for number in itertools.count():
            if self.stop.is_set():
                return
            time.sleep(0.001)  # The servers share two cores with these threads.
            yield writer * 10**7 + number

    def _append(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        with buffer.writer(flush_rows=4, max_in_flight=4) as appending:
            for number in self._numbers(writer):
                self.given[writer] += 1
                appending.append({"number": number})
                if number % 50 == 49:
                    appending.flush()
                    self.acknowledged[writer] = self.given[writer]
        self.acknowledged[writer] = self.given[writer]

    def _extend(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        with buffer.writer(flush_rows=64, max_in_flight=4) as extending:
            for number in self._numbers(writer):
                first = writer * 10**7 + self.given[writer]
                self.given[writer] += 5
                extending.extend({"number": torch.arange(first, first + 5)})
                if number % 20 == 19:
                    extending.flush()
                    self.acknowledged[writer] = self.given[writer]
        self.acknowledged[writer] = self.given[writer]

    def _add(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        for number in self._numbers(writer):
            self.given[writer] += 1
            buffer.add({"number": number})
            self.acknowledged[writer] = self.given[writer]

    def _add_batch(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        for number in self._numbers(writer):
            first, rows = writer * 10**7 + self.given[writer], 1 + number % 40
            self.given[writer] += rows
            buffer.add_batch({"number": torch.arange(first, first + rows)})
            self.acknowledged[writer] = self.given[writer]

    def _episodes(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        with buffer.trajectory_writer(flush_rows=4, max_in_flight=4) as playing:
            for number in self._numbers(writer):
                self.given[writer] += 1
                end = number % EPISODE == EPISODE - 1
                step = {"obs": np.int64(number), "number": np.int64(number), "reward": np.float32(0), "terminated": end, "truncated": False}
                playing.append(step)
                if number % 50 == 49:
                    playing.flush()
                    self.acknowledged[writer] = self.given[writer]
        self.acknowledged[writer] = self.given[writer]

    def _environments(self, buffer: ShardedReplayBuffer, writer: int) -> None:
        with buffer.trajectory_writer(ENVS, autoreset="disabled", max_in_flight=4) as playing:
            for at in itertools.count():
                if self.stop.is_set():
                    break
                time.sleep(0.002)
                first = writer * 10**7 + self.given[writer]
                numbers = np.arange(first, first + ENVS)
                self.given[writer] += ENVS
                ends = (at + np.arange(ENVS)) % EPISODE == EPISODE - 1
                steps = {"obs": numbers, "number": numbers, "reward": np.zeros(ENVS, np.float32), "terminated": ends, "truncated": ends & False}
                playing.append(steps)
                if at % 50 == 49:
                    playing.flush()
                    self.acknowledged[writer] = self.given[writer]
        self.acknowledged[writer] = self.given[writer]

    def finish(self) -> None:
        """Ends the threads, and waits for what they have on their way."""
        self.stop.set()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert not self.errors, self.errors

    def await_rows(self, more: int) -> None:
        """Waits until each writer has given so many rows more."""
        wanted = {writer: self.given[writer] + more for writer in range(len(self._threads))}
        deadline = time.monotonic() + SECONDS
        while any(self.given[writer] < count for writer, count in wanted.items()):
            assert time.monotonic() < deadline, (self.given, wanted)
            assert not self.errors, self.errors
            time.sleep(0.01)


@pytest.fixture
def shards(tmp_path) -> Iterator[Shards]:
    made = Shards(tmp_path, SHARDS)
    yield made
    made.close()


def kill_in_turn(shards: Shards, works: Sequence[Work], seed: int) -> None:
    """Kills one shard after the other, each in the middle of writes, and starts it again after a while, so that writers move, or wait for it."""
    chance = random.Random(seed)
    for kill in range(KILLS):
        for work in works:
            work.await_rows(30)
        time.sleep(chance.uniform(0, 0.05))
        shards.kill(kill % SHARDS)
        time.sleep(chance.choice((0.1, 0.5, 1.5, 2.5)))
        shards.start(kill % SHARDS)
    for work in works:
        work.await_rows(30)


def check_numbers(buffer: ShardedReplayBuffer, work: Work) -> None:
    """All that was given, each once: all of it is acknowledged when the writers are closed."""
    found = Counter(buffer.sample_all()["number"].tolist())
    assert {number: times for number, times in found.items() if times > 1} == {}
    for writer, kind in enumerate(work.kinds):
        lost = [number for number in range(work.acknowledged[writer]) if writer * 10**7 + number not in found]
        assert not lost, (kind, lost[:10])
    assert sum(found.values()) == sum(work.given.values())
    print(f"{KILLS} kills: {work.kinds} gave {sum(work.given.values())} rows, of which 0 are lost and 0 doubled")


def check_episodes(buffer: ShardedReplayBuffer) -> None:
    """Each episode is on one shard, with all of its steps in order."""
    stored = buffer.sample_all()
    steps: dict[int, list[tuple[int, int]]] = {}
    for episode, step, row_id in zip(stored["episode_id"].tolist(), stored["step"].tolist(), stored["row_id"].tolist(), strict=True):
        steps.setdefault(episode, []).append((row_id, step))
    for found in steps.values():
        assert len({row_id >> 48 for row_id, _ in found}) == 1
        assert [step for _, step in sorted(found)] == list(range(len(found)))


def await_all(buffer: ShardedReplayBuffer) -> None:
    deadline = time.monotonic() + SECONDS
    while buffer.describe().lost_shards:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("on_loss", ["raise", "degrade"])
def test_rows_are_neither_lost_nor_doubled_and_episodes_stay_whole_on_one_shard(shards, table, on_loss):
    options = {"buffer_size": CAPACITY, "timeout": 60, "on_loss": on_loss}
    with (
        ShardedReplayBuffer(shards.addresses, table=table, **options) as plain,
        ShardedReplayBuffer(shards.addresses, table=f"{table}-steps", trajectories=True, **options) as steps,
    ):
        works = Work(plain, ("append", "extend", "add", "add_batch")), Work(steps, ("episodes", "episodes", "environments"))
        kill_in_turn(shards, works, 1)
        for buffer, work in zip((plain, steps), works, strict=True):
            work.finish()
            await_all(buffer)
            check_numbers(buffer, work)
        check_episodes(steps)
