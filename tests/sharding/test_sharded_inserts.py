"""Rows that are inserted into several shards: the whole is one ring, bad rows change nothing, and rows given again are stored once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from conftest import rows
from tdreplay.errors import CodecError, InvalidArgumentError, NoPrioritiesError, SchemaError
from tdreplay.rows import given_row, given_rows
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SHARDS = 3


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with ExitStack() as running:
        yield [running.enter_context(ReplayServer(ServerConfig(address="127.0.0.1:0", max_tables=100_000))).address for _ in range(SHARDS)]


def numbers(address: str, table: str) -> dict[int, int]:
    """Slot -> number of its row, of one shard."""
    with RemoteReplayBuffer(address, table=table) as shard:
        if not shard.state().size:
            return {}
        stored = shard.sample_all()
        return dict(zip(stored["index"].tolist(), stored["action"].tolist(), strict=True))


def whole(addresses: list[str], table: str) -> dict[int, int]:
    """Slot of the whole buffer -> number of its row."""
    return {slot * len(addresses) + place: row for place, address in enumerate(addresses) for slot, row in numbers(address, table).items()}


_tables = iter(range(1_000_000))


@settings(max_examples=10, deadline=None)
@given(capacity=st.integers(SHARDS, 60), inserts=st.lists(st.integers(1, 40), max_size=6))
def test_the_whole_equals_one_ring(addresses, capacity, inserts):
    table, count, ring = f"ring-{next(_tables)}", 0, {}
    with ShardedReplayBuffer(addresses, table=table, buffer_size=capacity) as buffer:
        for n in inserts:
            if n < 4:
                for at in range(n):
                    buffer.add(rows(1, count + at)[0])
            else:
                buffer.add_batch(rows(n, count))
            ring |= {row % capacity: row for row in range(count, count + n)}
            count += n
        assert whole(addresses, table) == ring
        assert buffer.state().size == min(count, capacity)
        assert buffer.state().pointer == count % capacity
    for address in addresses:
        with RemoteReplayBuffer(address, table=table) as shard:
            shard.drop()


def test_insert_gives_the_row_ids_of_the_whole_in_the_order_of_the_rows(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        first = buffer.insert(given_row(rows(1)[0]))
        ids = buffer.insert(given_rows(rows(10, 1)))
        assert first.tolist() == [0]
        assert shard_numbers(ids).tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
        assert local_row_ids(ids).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
        small = buffer.insert(given_rows(rows(1, 11)))
        assert shard_numbers(small).tolist() == [2]


def test_rows_of_a_writer_id_go_to_one_shard(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300) as buffer, ShardedReplayBuffer(addresses, table=table) as other:
        used = set()
        for writer in range(8):
            ids = [shard_numbers(one.insert(given_rows(rows(20)), writer_id=f"writer-{writer}")) for one in (buffer, other)]
            assert len(np.unique(np.concatenate(ids))) == 1
            used.add(int(ids[0][0]))
        assert len(used) > 1


def test_rows_that_do_not_fit_change_no_shard(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        buffer.add(rows(1)[0])
        for bad, error in (
            ({"action": torch.arange(20)}, SchemaError),
            (rows(20).set("action", torch.zeros(20)), SchemaError),
            ({**rows(2), "text": ["a", "b"]}, (SchemaError, CodecError)),
            (TensorDict({}, [0]), (InvalidArgumentError, SchemaError)),
        ):
            with pytest.raises(error):
                buffer.add_batch(bad)
        with pytest.raises(NoPrioritiesError):
            buffer.add_batch(rows(20), priorities=np.ones(20))
        assert whole(addresses, table) == {0: 0}


def test_the_first_rows_ever_are_refused_by_one_shard_before_another_gets_any(addresses, table):
    """Rows that only a server refuses."""
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        with pytest.raises(NoPrioritiesError):
            buffer.add_batch(rows(20), priorities=np.ones(20))
        assert [numbers(address, table) for address in addresses] == [{}] * SHARDS
        buffer.add_batch({"other": torch.arange(20)})
        assert buffer.state().size == 20


def test_a_schema_that_another_client_gave_one_shard_holds_for_all(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer, RemoteReplayBuffer(addresses[2], table=table) as other:
        other.add_batch(rows(1))
        with pytest.raises(SchemaError):
            buffer.add({"action": 1.5})
        assert buffer.state().size == 1


def test_numbers_take_the_dtypes_of_the_joint_schema(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30) as buffer:
        buffer.add({"x": np.float64(1)})
        for number in range(8):
            buffer.add({"x": number})
        buffer.add_batch({"x": [1, 2, 3, 4, 5, 6]})
        assert buffer.state().size == 15


def test_local_rows_go_to_shards_of_this_host(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=30, placement="local") as buffer:
        buffer.add_batch(rows(9))
        assert buffer.state().size == 9
