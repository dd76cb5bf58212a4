"""Reads of a buffer one of whose shards is killed: errors are those of the shards that are there, and batches say what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shard_processes import Shards
from shard_servers import numbered

from tdreplay.errors import SlotIndexError
from tdreplay_client import ShardedReplayBuffer


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
