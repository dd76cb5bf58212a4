"""Inserts over shards whose rate limiters let rows wait: they go where there is room, and wait where no shard has any."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shard_servers import numbered, shard_servers

from tdreplay.errors import RateLimitedError
from tdreplay.rate_limiters import Queue, SamplesPerInsert
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.placement import FillLevel, RingPlacement

QUEUE = {"rate_limiter": Queue(6), "sampler": "fifo", "max_times_sampled": 1}


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(3) as found:
        yield found


def sizes(addresses, table) -> list[int]:
    found = []
    for address in addresses:
        with RemoteReplayBuffer(address, table=table) as shard:
            found.append(shard.describe().available)
    return found


@pytest.mark.parametrize("rows", range(1, 7))
def test_a_queue_takes_all_rows_for_which_the_whole_has_room_at_once(addresses, table, rows):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, timeout=1, **QUEUE) as buffer:
        buffer.add_batch(numbered(0, rows))
        assert buffer.size == rows
        assert sorted(buffer.sample_batch(rows)["number"].tolist()) == list(range(rows))


@pytest.mark.parametrize(
    "settings", [QUEUE, {"rate_limiter": Queue(6)}, {"rate_limiter": SamplesPerInsert(1.0, 3, 3.0)}], ids=["fifo", "queue", "ratio"]
)
@pytest.mark.parametrize("reset", [False, True])
def test_rows_go_to_the_shards_that_have_room_and_are_refused_where_none_has(addresses, table, settings, reset):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, timeout=0.5, **settings) as buffer:
        if reset:
            buffer.add_batch(numbered(100, 2))
            buffer.reset()
        with RemoteReplayBuffer(addresses[0], table=table) as shard:
            shard.add_batch(numbered(0, 2))
        buffer.add_batch(numbered(2, 3))
        buffer.add({"number": 5})
        assert sizes(addresses, table) == [2, 2, 2]
        with pytest.raises(
            RateLimitedError, match=r"an insert of 2 rows waits (for room in the queue: it holds 6 rows, 6 are|until 2 rows were drawn, 0 were)"
        ):
            buffer.add_batch(numbered(6, 2))
        assert sorted(buffer.sample_all()["number"].tolist()) == list(range(6))


def test_rows_of_which_some_were_refused_are_stored_once_when_they_are_given_again(addresses, table):
    rows = numbered(0, 8)
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, timeout=0.5, **QUEUE) as buffer:
        with pytest.raises(RateLimitedError, match="an insert of 2 rows waits for room"):
            buffer.add_batch(rows)
        found = buffer.sample_batch(6)["number"].tolist()
        buffer.add_batch(rows)
        found += buffer.sample_batch(2)["number"].tolist()
        assert sorted(found) == list(range(8))
        buffer.add_batch(numbered(0, 6))
        assert buffer.describe().insert_count == 14


def test_rows_that_wait_come_in_when_others_are_drawn_on_any_shard(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, timeout=20, **QUEUE) as buffer, ThreadPoolExecutor(1) as threads:
        inserting = threads.submit(lambda: [buffer.add_batch(numbered(first, 5)) for first in range(0, 60, 5)])
        found = [number for _ in range(20) for number in buffer.sample_batch(3)["number"].tolist()]
        inserting.result(20)
    assert sorted(found) == list(range(60))


def test_threads_that_insert_at_once_do_not_wait_where_another_shard_has_room(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, timeout=2, rate_limiter=Queue(60)) as buffer, ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(buffer.add, {"number": number}) for number in range(60)]:
            done.result(20)
        assert buffer.size == 60


def test_each_shard_gets_no_more_rows_than_it_has_room_for():
    ring = RingPlacement()
    ring.learn({number: FillLevel(100, 0, 0, 0) for number in range(3)}, range(3))
    parts = ring.place_within(10, {0: 1, 1: 0, 2: 4})
    assert {number: len(places) for number, places in parts} == {0: 1, 2: 4}
    assert sorted(np.concatenate([places for _, places in parts])) == list(range(5))
    assert ring.place_within(1, {0: 0, 1: 0, 2: 0}) == []
    ((number, places),) = ring.place_within(2, {0: 1, 1: 5, 2: 1})
    assert (number, places.tolist()) == (1, [0, 1])
