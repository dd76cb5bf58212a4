"""Random batches over shards: rows come as from one buffer, however unevenly they lie, and each batch says how probable its rows were."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from shard_servers import SIZES, fill_unevenly, numbered, shard_servers

from chi_square import deviation
from tdreplay.errors import EmptyTableError, FailedPreconditionError, InvalidArgumentError, NoTrajectoriesError, RateLimitedError
from tdreplay.priorities import importance_weights
from tdreplay.rate_limiters import MinSize
from tdreplay.samplers import Prioritized
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayBuffer

ROWS, DRAWS = sum(SIZES), 1_000_000 if os.environ.get("TDREPLAY_LONG") else 100_000
BATCH = 1000


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(len(SIZES)) as found:
        yield found


def opened(addresses, table, **options) -> ShardedReplayBuffer:
    return ShardedReplayBuffer(addresses, table=table, transport="grpc", **options)


def counted(buffer, draws=DRAWS, **options) -> np.ndarray:
    """How often each row comes in so many draws."""
    counts = np.zeros(ROWS, np.int64)
    for _ in range(draws // BATCH):
        counts += np.bincount(buffer.sample_batch(BATCH, **options)["number"].numpy(), minlength=ROWS)
    return counts


# -- exact draws ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 7], ids=["by chance", "seeded"])
def test_rows_of_uneven_shards_are_equally_probable(addresses, table, seed):
    fill_unevenly(addresses, table)
    with opened(addresses, table, seed=seed) as buffer:
        assert abs(deviation(counted(buffer), np.full(ROWS, 1 / ROWS))) < 5


def test_rows_of_uneven_shards_are_drawn_by_their_priorities(addresses, table):
    priorities = np.random.default_rng(3).random(ROWS) ** 3
    priorities[:3] = 0
    fill_unevenly(addresses, table, priorities=priorities, sampler=Prioritized(alpha=0.7))
    weights = np.where(priorities > 0, priorities**0.7, 0)
    with opened(addresses, table) as buffer:
        counts = counted(buffer)
        assert abs(deviation(counts, weights / weights.sum())) < 5
        assert abs(deviation(counted(buffer, DRAWS // 10, uniform=True), np.full(ROWS, 1 / ROWS))) < 5


def test_priorities_that_this_buffer_changes_count_at_once(addresses, table):
    fill_unevenly(addresses, table, priorities=np.ones(ROWS), sampler=Prioritized(alpha=1.0))
    with opened(addresses, table) as buffer:
        assert set(shard_numbers(buffer.sample_batch(500)["row_id"].numpy())) >= {1, 2}
        everything = buffer.sample_all()
        buffer.update_priorities(everything["row_id"], torch.where(everything["number"] == 3, 5.0, 0.0))
        assert set(buffer.sample_batch(500)["number"].tolist()) == {3}


def test_rows_of_a_batch_come_in_random_order_over_the_shards(addresses, table):
    fill_unevenly(addresses, table, sizes=(500, 500, 500))
    with opened(addresses, table) as buffer:
        numbers = shard_numbers(buffer.sample_batch(900)["row_id"].numpy())
    changes = int((np.diff(numbers) != 0).sum())
    assert 500 < changes < 700  # Two thirds of 899.


def test_the_same_seed_gives_the_same_batches(addresses, table):
    fill_unevenly(addresses, table)
    with opened(addresses, table, seed=5) as one, opened(addresses, table, seed=5) as two:
        for _ in range(3):
            batch = one.sample_batch(50)
            assert torch.equal(batch["row_id"], two.sample_batch(50)["row_id"])
        assert torch.equal(one.sample_batch(50, seed=9)["row_id"], two.sample_batch(50, seed=9)["row_id"])
        assert not torch.equal(one.sample_batch(50, seed=9)["row_id"], one.sample_batch(50)["row_id"])


# -- what a batch says of its draw --------------------------------------------------------------------------------------------------------------


def test_importance_weights_are_those_of_one_buffer_with_the_same_rows(addresses, table):
    priorities = 0.1 + np.random.default_rng(4).random(ROWS)
    priorities[5] = 0.001  # On the small shard, of which most batches have no row.
    fill_unevenly(addresses, table, priorities=priorities, sampler=Prioritized(alpha=0.6))
    with opened(addresses, table) as buffer, ReplayBuffer("cpu", "cpu", ROWS, sampler=Prioritized(alpha=0.6)) as whole:
        whole.add_batch(numbered(0, ROWS), priorities=priorities)
        reference = whole.sample_batch(50_000)
        expected = dict(zip(reference["number"].tolist(), importance_weights(reference, 0.4, "table").tolist(), strict=True))
        for _ in range(20):
            batch = buffer.sample_batch(64)
            assert batch["table_size"].unique().tolist() == [ROWS]
            assert batch["min_probability"][0].item() == pytest.approx(reference["min_probability"][0].item(), rel=1e-9)
            for number, weight in zip(batch["number"].tolist(), importance_weights(batch, 0.4, "table").tolist(), strict=True):
                assert weight == pytest.approx(expected.get(number, weight), rel=1e-5)
            assert torch.allclose(batch["priority"], torch.from_numpy(priorities)[batch["number"]])


def test_every_batch_has_memory_of_its_own_and_ids_of_the_whole(addresses, table):
    fill_unevenly(addresses, table)
    with opened(addresses, table) as buffer:
        batch = buffer.sample_batch(300)
        rows = {slot: (row, number) for slot, row, number in columns(buffer.sample_all())}
        assert all(rows[slot] == (row, number) for slot, row, number in columns(batch))
        batch["number"].zero_()
        assert buffer.sample_batch(300)["number"].any()
        assert "lost_shards" not in batch


def columns(batch):
    return zip(*(batch[name].tolist() for name in ("index", "row_id", "number")), strict=True)


# -- empty shards and waits -----------------------------------------------------------------------------------------------------------------------


def test_empty_shards_are_left_out_and_an_empty_buffer_is_an_error(addresses, table):
    with opened(addresses, table, buffer_size=300) as buffer:
        with pytest.raises(EmptyTableError):
            buffer.sample_batch(3)
        with RemoteReplayBuffer(addresses[1], table=table) as shard:
            shard.add_batch(numbered(0, 5))
        assert len(buffer.sample_batch(30)) == 30
        with RemoteReplayBuffer(addresses[1], table=table) as shard:
            shard.reset()
        with RemoteReplayBuffer(addresses[2], table=table) as shard:
            shard.add_batch(numbered(7, 1))
        assert buffer.sample_batch(30)["number"].tolist() == [7] * 30


def test_an_empty_buffer_waits_for_its_first_row_if_it_is_told_to(addresses, table):
    with opened(addresses, table, buffer_size=300) as buffer, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(buffer.sample_batch, 4, wait=True)
        time.sleep(0.2)
        assert not waiting.done()
        buffer.add_batch(numbered(0, 2))
        assert len(waiting.result(20)) == 4


def test_a_wait_for_rows_ends_with_the_time(addresses, table):
    with opened(addresses, table, buffer_size=300, timeout=0.5) as buffer, pytest.raises(EmptyTableError):
        buffer.sample_batch(4, wait=True)


def test_a_rate_limiter_is_waited_for_and_says_what_it_waits_for(addresses, table):
    with opened(addresses, table, buffer_size=300, rate_limiter=MinSize(30), timeout=1.5) as buffer:
        buffer.add_batch(numbered(0, 6))
        with pytest.raises(RateLimitedError, match="rows"):
            buffer.sample_batch(4)
        buffer.add_batch(numbered(6, 24))
        assert len(buffer.sample_batch(4)) == 4


def test_rows_that_leave_come_once_each_from_all_shards(addresses, table):
    with opened(addresses, table, buffer_size=300, max_times_sampled=1, timeout=1) as buffer:
        buffer.add_batch(numbered(0, 60))
        found = [number for _ in range(6) for number in buffer.sample_batch(10)["number"].tolist()]
        assert sorted(found) == list(range(60))
        with pytest.raises(RateLimitedError, match="sampling needs 10 rows, 0 are there"):
            buffer.sample_batch(10)


def test_rows_of_a_batch_that_was_not_whole_in_time_are_anybodys(addresses, table):
    """One shard gives its rows, and another one's rate limiter does not let its own out."""
    settings = {"max_times_sampled": 1, "rate_limiter": MinSize(10)}
    fill_unevenly(addresses, table, (28, 2, 0), **settings)
    with opened(addresses, table, timeout=1) as buffer:
        with pytest.raises(RateLimitedError):
            buffer.sample_batch(30)
    with opened(addresses, table, timeout=10) as other:
        assert sorted(other.sample_batch(28)["number"].tolist()) == list(range(28))


# -- bad input ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"batch_size": 2, "seed": -1}, {"batch_size": 2, "view": 3}, {"batch_size": 2, "wait": "no"}]
)
def test_arguments_that_break_their_rule_are_refused(addresses, table, arguments):
    fill_unevenly(addresses, table)
    with opened(addresses, table) as buffer, pytest.raises((InvalidArgumentError, NoTrajectoriesError)):
        buffer.sample_batch(**arguments)


def test_uniform_batches_of_rows_that_leave_are_refused(addresses, table):
    with opened(addresses, table, buffer_size=30, max_times_sampled=2) as buffer:
        buffer.add_batch(numbered(0, 30))
        with pytest.raises(FailedPreconditionError, match="uniform"):
            buffer.sample_batch(3, uniform=True)
