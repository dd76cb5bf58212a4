"""Random batches over shards while others insert rows: exact where the shards' totals stay, and within the stated bound where they change."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from shard_servers import SIZES, fill_unevenly, numbered, shard_servers

from chi_square import deviation
from tdreplay.samplers import Prioritized
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.totals import FRESH_SECONDS

DRAWS = 1_000_000 if os.environ.get("TDREPLAY_LONG") else 60_000
BATCH = 1000
numbers = itertools.count()


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(len(SIZES)) as found:
        yield found


@pytest.fixture
def table() -> str:
    return f"growing-{next(numbers)}"


def opened(address: str, table: str, **settings: object) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(address, table=table, transport="grpc", **settings)


# -- full rings -------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def overwritten(addresses: list[str], table: str, weights: list[np.ndarray] | None) -> Iterator[list[int]]:
    """Meanwhile rows of full shards are overwritten, each by one of the same priority. Gives how many were, once it is over."""
    over, written = threading.Event(), [0]

    def insert() -> None:
        with ExitStack() as open_ones:
            shards = [open_ones.enter_context(opened(address, table)) for address in addresses]
            while not over.wait(0.001):
                for shard, size, own in zip(shards, SIZES, weights or [None] * len(shards), strict=True):
                    row = written[0] % size
                    shard.add_batch(numbered(row, 1), priorities=None if own is None else own[row : row + 1])
                written[0] += 1

    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(insert)
        try:
            yield written
        finally:
            over.set()
            working.result()


def counted(buffer: ShardedReplayBuffer) -> np.ndarray:
    """How often a row of each shard and slot comes, shard after shard."""
    counts, starts = np.zeros(sum(SIZES), np.int64), np.array([0, *np.cumsum(SIZES)[:-1]])
    for _ in range(DRAWS // BATCH):
        batch = buffer.sample_batch(BATCH)
        numbers = shard_numbers(batch["row_id"].numpy())
        counts += np.bincount(starts[numbers] + batch["index"].numpy() // len(SIZES), minlength=len(counts))
    return counts


@pytest.mark.parametrize("sampler", [None, Prioritized(alpha=0.7)], ids=["uniform", "prioritized"])
def test_draws_are_exact_while_rows_of_full_shards_are_overwritten(addresses, table, sampler):
    priorities = np.random.default_rng(3).random(sum(SIZES)) ** 2
    weights = np.ones(sum(SIZES)) if sampler is None else priorities**0.7
    with ExitStack() as tables:
        for address, size, own in zip(addresses, SIZES, np.split(priorities, np.cumsum(SIZES)[:-1]), strict=True):
            shard = tables.enter_context(opened(address, table, buffer_size=size, sampler=sampler))
            shard.add_batch(numbered(0, size), priorities=None if sampler is None else own)
    given = None if sampler is None else np.split(priorities, np.cumsum(SIZES)[:-1])
    with ShardedReplayBuffer(addresses, table=table, transport="grpc") as buffer, overwritten(addresses, table, given) as written:
        off = deviation(counted(buffer), weights / weights.sum())
    print(f"{DRAWS} draws while {written[0]} rows of each shard were overwritten: {off:.2f} standard deviations off")
    assert written[0] > 10
    assert abs(off) < 5


# -- shards that grow -------------------------------------------------------------------------------------------------------------------------


class Growing:
    """What is known of a shard that grows, and of the batches that are drawn meanwhile.

    Args:
        weight: What each of its rows weighs; a row of the other shards weighs 1.
        others: The rows of the other shards.
    """

    def __init__(self, weight: float, others: np.ndarray) -> None:
        self._weight, self._others = weight, others
        self._inserted: list[tuple[float, int]] = []
        self._calls: list[tuple[float, float]] = []
        self.drawn, self.expected, self.variance = (np.zeros(1 + len(others)) for _ in range(3))
        self.bound = 0.0

    def insert(self, rows: int) -> None:
        self._inserted.append((time.monotonic(), rows))

    def draw(self, began: float, rows: np.ndarray) -> None:
        """Notes a batch that was asked for then, and how many rows of it are of each shard."""
        self._calls.append((began, time.monotonic()))
        mass = np.array([self._weight * self._since(0.0), *self._others])
        right = mass / mass.sum()
        self.drawn, self.expected = self.drawn + rows, self.expected + rows.sum() * right
        self.variance += rows.sum() * right * (1 - right)
        # What was used was heard in a call that ended in the last `FRESH_SECONDS`, and is not older than that call.
        oldest = min(start for start, end in self._calls[-200:] if end >= began - FRESH_SECONDS)
        changed = self._weight * self._since(oldest)
        self.bound += rows.sum() * min(1.0, changed / (mass.sum() - changed))

    def _since(self, moment: float) -> int:
        return sum(rows for when, rows in self._inserted if when >= moment)


@pytest.mark.parametrize("sampler", [None, Prioritized(alpha=1.0)], ids=["uniform", "prioritized"])
def test_draws_stay_within_the_bound_while_a_shard_grows(addresses, table, sampler):
    weight, sizes = (1.0 if sampler is None else 2.0), (0, 400, 600)
    priorities = None if sampler is None else np.ones(sum(sizes))
    fill_unevenly(addresses, table, sizes, priorities=priorities, **({} if sampler is None else {"sampler": sampler}))
    growing, steps = Growing(weight, np.array(sizes[1:], float)), 100
    with ShardedReplayBuffer(addresses, table=table, transport="grpc") as buffer, opened(addresses[0], table) as shard:
        for step in range(steps):
            if step:
                growing.insert(5)
                shard.add_batch(numbered(0, 5), priorities=None if sampler is None else [weight] * 5)
            began = time.monotonic()
            row_ids = buffer.sample_batch(DRAWS // steps)["row_id"].numpy()
            growing.draw(began, np.bincount(shard_numbers(row_ids), minlength=len(sizes)).astype(float))
    off = np.abs(growing.drawn - growing.expected).sum() / 2 / growing.drawn.sum()
    bound, noise = growing.bound / growing.drawn.sum(), 5 * np.sqrt(growing.variance).sum() / 2 / growing.drawn.sum()
    print(f"{DRAWS} draws, a shard grew to {5 * steps} rows: total variation {off:.5f}, bound {bound:.5f}, 5 standard deviations {noise:.5f}")
    assert 0 < bound < 0.5
    assert off < bound + noise
