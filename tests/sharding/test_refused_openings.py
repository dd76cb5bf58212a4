"""A buffer that cannot be opened over some servers leaves them as they were."""

from __future__ import annotations

import pytest
import torch

from tdreplay.errors import InvalidArgumentError, SchemaError, TableExistsError, TableNotFoundError
from tdreplay_client import Prioritized, RemoteReplayBuffer, SamplesPerInsert, ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture
def addresses():
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as first, ReplayServer(ServerConfig(address="127.0.0.1:0")) as second:
        yield [first.address, second.address]


@pytest.mark.parametrize("settings", [{"buffer_size": 7}, {"buffer_size": 5, "sampler": "fifo"}], ids=["size", "sampler"])
def test_a_table_that_one_shard_refuses_is_made_on_none(addresses, settings):
    RemoteReplayBuffer(addresses[1], table="steps", **settings).close()
    with pytest.raises(TableExistsError, match=f"on {addresses[1]} with"):
        ShardedReplayBuffer(addresses, table="steps", buffer_size=10, sampler="uniform")
    assert RemoteReplayBuffer.tables(addresses[0]) == []


def test_the_first_table_that_a_server_describes_before_it_is_made_refuses_nothing(addresses):
    described = [RemoteReplayBuffer(address, table="other", buffer_size=3) for address in addresses]  # So 'default' is described, and not there.
    with ShardedReplayBuffer(addresses, buffer_size=10, sampler=Prioritized(alpha=0.7)) as buffer:
        assert buffer.describe().config.sampler == Prioritized(alpha=0.7)
        assert len(buffer) == 0
    for other in described:
        other.close()


@pytest.mark.parametrize("rows", [0, 3])
def test_a_first_table_that_is_made_refuses_what_differs(addresses, rows):
    with RemoteReplayBuffer(addresses[1], buffer_size=5) as one:
        if rows:
            one.add_batch({"number": range(rows)})
    with pytest.raises(TableExistsError, match=f"on {addresses[1]} with sampler"):
        ShardedReplayBuffer(addresses, buffer_size=10, sampler=Prioritized(alpha=0.7))
    assert RemoteReplayBuffer.tables(addresses[0]) == []


def test_tables_of_other_settings_are_no_one_buffer_though_each_has_what_was_asked_for(addresses):
    for address, alpha in zip(addresses, (0.6, 0.7), strict=True):
        RemoteReplayBuffer(address, table="steps", buffer_size=5, sampler=Prioritized(alpha=alpha)).close()
    with pytest.raises(InvalidArgumentError, match="sampler of the first is"):
        ShardedReplayBuffer(addresses, table="steps", buffer_size=10)


def test_rows_of_other_fields_are_no_one_buffer(addresses):
    for address, name in zip(addresses, "ab", strict=True):
        with RemoteReplayBuffer(address, table="steps", buffer_size=5) as buffer:
            buffer.add_batch({name: torch.zeros(3, 4)})
    with pytest.raises(SchemaError, match=r"shard 1 at .* are others than those of shard 0 at .*: 'a' is not there, and F32 \[4\]"):
        ShardedReplayBuffer(addresses, table="steps")


def test_a_table_that_is_on_one_server_alone_is_missed_by_name(addresses):
    RemoteReplayBuffer(addresses[0], table="steps", buffer_size=5).close()
    with pytest.raises(TableNotFoundError, match=f"on {addresses[1]}, table 'steps' is not there"):
        ShardedReplayBuffer(addresses, table="steps")


def test_a_server_of_no_cluster_is_no_shard_of_one(addresses):
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0", cluster="replay", shard=0)) as shard,
        pytest.raises(InvalidArgumentError, match=f"server at {addresses[0]} is of no cluster, and the one at {shard.address} of cluster 'replay'"),
    ):
        ShardedReplayBuffer([shard.address, addresses[0]], buffer_size=10)


def test_limiters_of_other_ratios_are_no_one_limiter(addresses):
    for address, ratio in zip(addresses, (2.0, 3.0), strict=True):
        RemoteReplayBuffer(address, table="steps", buffer_size=5, rate_limiter=SamplesPerInsert(ratio, 3, 20)).close()
    with pytest.raises(InvalidArgumentError, match=r"samples_per_insert are \[2.0, 3.0\]"):
        ShardedReplayBuffer(addresses, table="steps")


def test_what_is_neither_addresses_nor_a_directory_is_named():
    with pytest.raises(InvalidArgumentError, match="addresses \\(None\\) must be a list of addresses, or a directory"):
        ShardedReplayBuffer(None)
