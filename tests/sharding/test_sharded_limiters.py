"""Rate limiters over shards: each shard has its part, and what one of them refuses comes from the others, so that both sides go on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shard_servers import fill_unevenly, numbered, shard_servers

from tdreplay.errors import InvalidArgumentError, RateLimitedError, ReplayError, TableExistsError, TableNotFoundError
from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.owed_rows import OwedRows


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(3) as found:
        yield found


def put(address: str, table: str, first: int, rows: int) -> None:
    with RemoteReplayBuffer(address, table=table) as shard:
        shard.add_batch(numbered(first, rows))


# -- what shards owe --------------------------------------------------------------------------------------------------------------------------


def test_a_shard_is_asked_for_no_more_than_the_most_at_once_until_it_gave_its_part():
    owed = OwedRows(4)
    owed.share_out({0: 7, 1: 0, 2: 3})
    assert owed.next() == {0: 4, 2: 3}
    owed.gave(0, 4)
    owed.gave(2, 3)
    assert owed.next() == {0: 3}
    owed.gave(0, 3)
    assert not owed


def test_what_a_shard_refuses_is_left_to_the_others_until_all_refuse():
    owed = OwedRows(8)
    assert owed.open([0, 1]) == [0, 1]
    owed.share_out({0: 8, 1: 8})
    owed.failed(0, refused=True)
    assert owed.next() == {1: 8}
    assert owed.open([0, 1]) == [1]
    owed.failed(1, refused=True)
    assert owed.open([0, 1]) == [0, 1]
    owed.share_out({0: 8, 1: 8})
    assert owed.next() == {0: 4, 1: 4}, "in smaller parts"


def test_a_shard_that_is_lost_is_asked_again():
    owed = OwedRows(8)
    owed.share_out({0: 2, 1: 6})
    owed.failed(0, refused=False)
    assert owed.next() == {1: 6}
    assert owed.open([0, 1]) == [0, 1]


# -- what the whole's rate limiter is -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limiter",
    [
        *(MinSize(rows) for rows in (1, 2, 4, 30)),
        *(SamplesPerInsert(2.0, rows, 10.0) for rows in (1, 2, 5)),
        SamplesPerInsert(2.2, 1, 6.6),
        SamplesPerInsert(1.0, 7, 100 / 3),
        *(Queue(rows) for rows in (3, 4, 30)),
    ],
    ids=str,
)
def test_the_rate_limiter_of_the_whole_is_the_one_that_was_asked_for(addresses, table, limiter):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=1) as buffer:
        assert buffer.describe().config.rate_limiter == limiter
        for settings in ({}, {"rate_limiter": limiter}, {"buffer_size": 300, "rate_limiter": limiter}):
            with ShardedReplayBuffer(addresses, table=table, **settings) as again:
                assert again.describe().config.rate_limiter == limiter
        with pytest.raises(TableExistsError, match=f"rate_limiter {re.escape(str(limiter))}, not min_size"):
            ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=MinSize(99))
        buffer.reset(35)
        assert (buffer.describe().config.rate_limiter, buffer.buffer_size) == (limiter, 35)


@pytest.mark.parametrize("limiter", [MinSize(1), MinSize(2), SamplesPerInsert(2.0, 1, 10.0), SamplesPerInsert(1.0, 2, 3.0)], ids=str)
def test_a_batch_comes_with_as_many_rows_as_the_whole_needs_whichever_shards_they_are_on(addresses, table, limiter):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=0.3) as buffer:
        for shard in range(3):
            buffer.reset()
            for number in range(limiter.min_size):
                with pytest.raises(RateLimitedError) if number else pytest.raises(ReplayError):
                    buffer.sample_batch(1)
                put(addresses[(shard + number) % 3], table, number, 1)
            assert len(buffer.sample_batch(1)) == 1


@pytest.mark.parametrize(
    ("limiter", "words"),
    [
        (Queue(2), r"max_size \(2\) must be at least 3, one for each shard"),
        (SamplesPerInsert(2.0, 1, 5.5), r"error_buffer \(5.5\) must be at least 6"),
        (SamplesPerInsert(0.5, 1, 1.0), r"error_buffer \(1\) must be at least 3"),
    ],
    ids=str,
)
def test_what_cannot_be_divided_among_the_shards_is_refused_and_nothing_is_made(addresses, table, limiter, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter)
    with pytest.raises(TableNotFoundError):
        RemoteReplayBuffer(addresses[0], table=table)


@pytest.mark.parametrize(
    ("limiter", "size", "words"),
    [
        (MinSize(5), 4, r"min_size \(5\)"),
        (SamplesPerInsert(1.0, 1, 9.0), 2, r"buffer_size \(2\) must be at least 3"),
        (Queue(6), 5, r"max_size \(6\)"),
    ],
    ids=str,
)
def test_a_reset_with_which_the_rate_limiter_cannot_work_changes_nothing(addresses, table, limiter, size, words):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=1) as buffer:
        for shard in range(3):
            put(addresses[shard], table, shard, 1)
        with pytest.raises(InvalidArgumentError, match=words):
            buffer.reset(size)
        assert (buffer.buffer_size, buffer.size) == (300, 3)


def test_a_smaller_capacity_than_shards_keeps_a_small_min_size(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=2, rate_limiter=MinSize(2), timeout=1) as buffer:
        for size in (2, 300, 2):
            buffer.reset(size)
            assert buffer.describe().config.rate_limiter == MinSize(2)


def test_nobody_may_ask_a_whole_table_to_wait_for_no_row(addresses, table):
    with pytest.raises(InvalidArgumentError, match=r"min_size \(0\)"):
        RemoteReplayBuffer(addresses[0], table=table, buffer_size=10, rate_limiter=SamplesPerInsert(1.0, 0, 9.0))


# -- rows that have to be there -----------------------------------------------------------------------------------------------------------------


def test_no_batch_comes_before_the_whole_buffer_has_its_rows(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=MinSize(30), timeout=1) as buffer:
        put(addresses[0], table, 0, 20)  # More than a shard's part.
        with pytest.raises(RateLimitedError, match="needs 30 rows in the table, 20 are there"):
            buffer.sample_batch(4)


@pytest.mark.parametrize("limiter", [MinSize(30), SamplesPerInsert(1.0, 30, 100.0)])
def test_no_stream_begins_before_the_whole_buffer_has_its_rows(addresses, table, limiter):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=1) as buffer:
        put(addresses[0], table, 0, 12)  # More than a shard's part.
        with buffer.stream(3) as batches:
            with pytest.raises(RateLimitedError, match="needs 30 rows in the table, 12 are there"):
                next(batches)
            for place, address in enumerate(addresses):
                put(address, table, 12 + place * 12, 12)
            assert len(next(batches)) == 3


def test_no_batch_of_steps_comes_before_the_whole_buffer_has_its_rows(addresses, table):
    settings = {"buffer_size": 300, "rate_limiter": MinSize(30), "trajectories": True}
    with (
        ShardedReplayBuffer(addresses, table=table, timeout=1, **settings) as buffer,
        buffer.trajectory_writer() as writer,
        buffer.stream(3) as batches,
    ):
        for number in range(12):
            writer.append({"obs": float(number), "action": 0, "reward": 0.0, "terminated": False, "truncated": False})
        writer.flush()
        for read in (lambda: buffer.sample_batch(3), lambda: next(batches)):
            with pytest.raises(RateLimitedError, match="needs 30 rows in the table, 12 are there"):
                read()
        for number in range(18):
            writer.append({"obs": float(number), "action": 0, "reward": 0.0, "terminated": False, "truncated": False})
        writer.flush()
        assert len(buffer.sample_batch(3)) == len(next(batches)) == 3


def test_a_shard_with_less_than_its_part_does_not_hold_up_the_whole(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=MinSize(30), timeout=5) as buffer:
        put(addresses[0], table, 0, 20)
        put(addresses[1], table, 20, 10)
        put(addresses[2], table, 30, 1)
        for _ in range(3):
            batch = buffer.sample_batch(60)
            assert set(shard_numbers(batch["row_id"].numpy())) == {0, 1}
            assert len(batch) == 60


def test_a_shard_that_was_emptied_is_left_out_until_it_has_its_rows_again(addresses, table):
    fill_unevenly(addresses, table, (60, 60, 60), rate_limiter=MinSize(20))
    with ShardedReplayBuffer(addresses, table=table, timeout=5) as buffer:
        for _ in range(3):
            buffer.sample_batch(30)
        with RemoteReplayBuffer(addresses[1], table=table) as shard:
            shard.reset()
        assert set(shard_numbers(buffer.sample_batch(90)["row_id"].numpy())) == {0, 2}
        put(addresses[1], table, 60, 60)
        while set(shard_numbers(buffer.sample_batch(90)["row_id"].numpy())) != {0, 1, 2}:
            pass


# -- both sides go on -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error_buffer", [6, 40])
def test_inserts_and_batches_do_not_wait_for_each_other_for_ever(addresses, table, error_buffer):
    limiter, rows, drawn = SamplesPerInsert(2.0, min_size=3, error_buffer=error_buffer), 60, 0
    with (
        ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=20) as writer,
        ShardedReplayBuffer(addresses, table=table, timeout=4) as reader,
        ThreadPoolExecutor(1) as threads,
    ):
        writing = threads.submit(lambda: [writer.add({"number": number}) for number in range(rows)])
        while not writing.done():
            try:
                drawn += len(reader.sample_batch(7))
            except RateLimitedError:
                assert writing.done(), "both sides wait"
        writing.result()
        assert reader.describe().size == rows
    assert abs(2 * rows - drawn) <= error_buffer + 7


def test_a_queue_whose_rows_lie_on_one_shard_gives_a_batch_of_all_its_rows(addresses, table):
    """The writer waits at a full shard; the batch needs rows that it would insert."""
    settings = {"buffer_size": 90, "rate_limiter": Queue(9), "max_times_sampled": 1, "sampler": "fifo"}
    with ShardedReplayBuffer(addresses, table=table, timeout=10, **settings) as buffer, ThreadPoolExecutor(1) as threads:
        with RemoteReplayBuffer(addresses[0], table=table) as shard:
            inserting = threads.submit(lambda: [shard.add({"number": number}) for number in range(9)])
            found = buffer.sample_batch(9)
            inserting.result(20)
    assert sorted(found["number"].tolist()) == list(range(9))


@pytest.mark.parametrize("limiter", [Queue(30), MinSize(3)])
def test_a_batch_that_is_refused_takes_no_row_away(addresses, table, limiter):
    settings = {"buffer_size": 90, "rate_limiter": limiter, "max_times_sampled": 1, "sampler": "fifo"}
    with ShardedReplayBuffer(addresses, table=table, timeout=1, **settings) as buffer:
        buffer.add_batch(numbered(0, 9))
        with buffer.stream(12) as batches:
            for read in (lambda: buffer.sample_batch(12), lambda: next(batches)):
                with pytest.raises(RateLimitedError, match="sampling needs 12 rows, 9 are there"):
                    read()
                assert buffer.size == 9
    with ShardedReplayBuffer(addresses, table=table, timeout=10) as other:
        assert sorted(other.sample_batch(9)["number"].tolist()) == list(range(9))
        assert other.size == 0, "what was drawn has left when the batch is there"


def test_learners_who_each_hold_a_part_do_not_wait_for_each_other_for_ever(addresses, table):
    settings = {"buffer_size": 90, "rate_limiter": Queue(9), "max_times_sampled": 1, "sampler": "fifo"}
    with ShardedReplayBuffer(addresses, table=table, timeout=20, **settings) as buffer, ThreadPoolExecutor(2) as threads:
        learning = [threads.submit(lambda: buffer.sample_batch(9)["number"].tolist()) for _ in range(2)]
        for number in range(18):
            buffer.add({"number": number})
        assert sorted(itertools.chain(*(one.result(20) for one in learning))) == list(range(18))


def test_a_wait_that_does_not_end_in_time_says_what_it_waits_for(addresses, table):
    limiter = SamplesPerInsert(1.0, min_size=3, error_buffer=9)
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=limiter, timeout=1) as buffer:
        buffer.add_batch(numbered(0, 3))
        buffer.sample_batch(3)
        with pytest.raises(RateLimitedError, match="rows"):
            buffer.sample_batch(7)


def test_importance_weights_stay_those_of_the_whole_where_a_shard_refuses(addresses, table):
    priorities = np.ones(90)
    fill_unevenly(addresses, table, (50, 35, 5), priorities=priorities, sampler="prioritized", rate_limiter=MinSize(10))
    with ShardedReplayBuffer(addresses, table=table, timeout=5) as buffer:
        batch = buffer.sample_batch(600)
    assert batch["table_size"].unique().tolist() == [90]
    assert batch["probability"].min().item() >= 1 / 90 - 1e-12
