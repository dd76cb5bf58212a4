"""A buffer that cannot be opened over some servers leaves them as they were."""

from __future__ import annotations

import pytest

from tdreplay.errors import InvalidArgumentError, TableExistsError
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


def test_tables_of_other_settings_are_no_one_buffer_though_each_has_what_was_asked_for(addresses):
    for address, alpha in zip(addresses, (0.6, 0.7), strict=True):
        RemoteReplayBuffer(address, table="steps", buffer_size=5, sampler=Prioritized(alpha=alpha)).close()
    with pytest.raises(InvalidArgumentError, match="sampler of the first is"):
        ShardedReplayBuffer(addresses, table="steps", buffer_size=10)


def test_limiters_of_other_ratios_are_no_one_limiter(addresses):
    for address, ratio in zip(addresses, (2.0, 3.0), strict=True):
        RemoteReplayBuffer(address, table="steps", buffer_size=5, rate_limiter=SamplesPerInsert(ratio, 3, 20)).close()
    with pytest.raises(InvalidArgumentError, match=r"samples_per_insert are \[2.0, 3.0\]"):
        ShardedReplayBuffer(addresses, table="steps")


def test_what_is_neither_addresses_nor_a_directory_is_named():
    with pytest.raises(InvalidArgumentError, match="addresses \\(None\\) must be a list of addresses, or a directory"):
        ShardedReplayBuffer(None)
