"""Reads of a buffer one of whose shards is killed: errors are those of the shards that are there, and batches say what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shard_processes import Shards
from shard_servers import numbered

from tdreplay.errors import ServerUnavailableError, SlotIndexError, TableNotFoundError
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer


@pytest.fixture
def shards(tmp_path) -> Iterator[Shards]:
    made = Shards(tmp_path, 2)
    yield made
    made.close()


def test_an_empty_slot_of_a_shard_that_is_there_is_named_while_another_one_is_lost(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=300, timeout=5, on_loss="degrade") as buffer:
        buffer.add_batch(numbered(0, 60))
        shards.kill(1)
        with pytest.raises(SlotIndexError, match="index 298 holds no row"):
            buffer.sample_by_index([0, 298])


def test_all_rows_say_that_those_of_a_lost_shard_are_missing(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=300, timeout=5, on_loss="degrade") as buffer:
        buffer.add_batch(numbered(0, 60))
        assert buffer.sample_all()["lost_shards"].tolist() == [0] * 60
        shards.kill(1)
        assert buffer.size == 30
        assert buffer.sample_all()["lost_shards"].tolist() == [1] * 30
        with buffer.stream(4, fields=["number", "lost_shards"]) as batches:
            assert next(batches)["lost_shards"].tolist() == [1] * 4


def test_reads_wait_for_a_shard_that_came_back_without_its_table_until_it_is_made_again(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=300, timeout=60) as buffer:
        buffer.add_batch(numbered(0, 60))
        shards.kill(1)
        shards.start(1, empty=True)
        assert buffer.size == 30
        assert len(buffer.sample_batch(4)) == 4
        assert buffer.buffer_size == 300


def test_a_table_that_nobody_makes_again_is_a_lost_shard_which_is_named(shards, table):
    with ShardedReplayBuffer(shards.addresses, table=table, buffer_size=300) as made:
        made.add_batch(numbered(0, 60))
    with ShardedReplayBuffer(shards.addresses, table=table, timeout=1) as buffer:
        assert buffer.size == 60
        shards.kill(1)
        shards.start(1, empty=True)
        with pytest.raises(ServerUnavailableError, match=f"shard 1 at {shards.addresses[1]} came back without its table"):
            buffer.state()
        with RemoteReplayBuffer(shards.addresses[0], table=table) as other:
            other.drop()
        with pytest.raises(TableNotFoundError):
            buffer.state()
