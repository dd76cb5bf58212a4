"""Rows that are written with their priorities."""

from __future__ import annotations

import math

import pytest
import torch

from children import server_process
from conftest import freeze, rows, thaw
from tdreplay.errors import DeadlineError, InvalidArgumentError, NoPrioritiesError, SchemaError
from tdreplay_client import Prioritized, RemoteReplayBuffer


@pytest.fixture(params=["shared_memory", "grpc"])
def buffer(address, table, request):
    with RemoteReplayBuffer(address, table=table, buffer_size=200_000, sampler=Prioritized(alpha=1.0), timeout=20, transport=request.param) as made:
        yield made


def priorities(buffer, n=2000):
    """The row ids that are drawn -> the priorities of these rows."""
    batch = buffer.sample_batch(n)
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


def test_rows_get_the_priorities_that_they_are_given(buffer):
    buffer.add(rows(1)[0], priority=3)
    buffer.add_batch(rows(2, 1), priorities=[0.5, 2.0])
    buffer.add_batch(rows(2, 3), priorities=torch.tensor([[1.0], [1.5]]))
    buffer.add_batch(rows(1, 5), priorities=4)
    buffer.add(rows(1, 6)[0])  # The highest so far.
    assert priorities(buffer) == {0: 3.0, 1: 0.5, 2: 2.0, 3: 1.0, 4: 1.5, 5: 4.0, 6: 4.0}


def test_a_writer_seals_its_block_where_rows_begin_or_end_to_have_priorities(buffer):
    with buffer.writer(flush_rows=64) as writer:
        writer.append(rows(1)[0], priority=2.0)
        writer.append(rows(1, 1)[0])
        writer.append({"obs": [2.0, 2.0, 2.0], "action": 2, "done": True, "next": {"obs": [3.0, 3.0, 3.0]}}, priority=0.5)
        writer.extend(rows(3, 3), priorities=[1.0, 2.0, 3.0])
        writer.extend(rows(2, 6))
    assert priorities(buffer) == {0: 2.0, 1: 2.0, 2: 0.5, 3: 1.0, 4: 2.0, 5: 3.0, 6: 3.0, 7: 3.0}
    batch = buffer.sample_by_index(range(8))
    assert batch["action"].tolist() == list(range(8))


@pytest.mark.parametrize("way", ["add_batch", "extend"])
def test_large_batches_keep_their_priorities(buffer, way):
    """Those of several blocks, and those that go through shared memory."""
    many = {"x": torch.zeros(30_000, 64), "n": torch.arange(30_000)}
    given = torch.arange(30_000).double() + 1
    if way == "extend":
        with buffer.writer() as writer:
            writer.extend(many, priorities=given)
    else:
        buffer.add_batch(many, priorities=given)
    batch = buffer.sample_batch(4096)
    assert (batch["priority"] == batch["n"] + 1).all()


def test_rows_that_are_batches_have_one_priority_each(buffer):
    buffer.add_batch({"x": torch.arange(6).reshape(3, 2)}, priorities=[1, 2, 3])
    batch = buffer.sample_batch(64)
    assert (batch["priority"] == batch["row_id"] + 1).all()


@pytest.mark.parametrize("priority", [-1.0, math.nan, math.inf])
def test_a_priority_that_cannot_be_is_refused_and_the_writer_goes_on(buffer, priority):
    with buffer.writer() as writer:
        with pytest.raises(InvalidArgumentError, match=r"a priority .* must be a finite number from 0 up"):
            writer.append(rows(1)[0], priority=priority)
        with pytest.raises(InvalidArgumentError, match="must be 2, one for each row"):
            writer.extend(rows(2), priorities=[1.0, 1.0, 1.0])
        writer.append(rows(1)[0], priority=1)
    with pytest.raises(InvalidArgumentError, match="a priority"):
        buffer.add(rows(1)[0], priority=priority)
    assert buffer.size == 1


def test_priorities_for_a_table_without_are_refused(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as uniform:
        with pytest.raises(NoPrioritiesError, match="no priorities"):
            uniform.add_batch(rows(2), priorities=1.0)
        with pytest.raises(NoPrioritiesError), uniform.writer() as writer:
            writer.append(rows(1)[0], priority=1.0)
        assert uniform.size == 0
        uniform.add_batch({"priority": torch.tensor([5.0, 6.0], dtype=torch.float64), "x": torch.arange(2)})  # A field of the user's own.
        assert uniform.sample_all()["priority"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize("cast", [False, True])
def test_a_sampled_batch_goes_in_again_by_every_way(address, table, cast):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, sampler="prioritized", cast=cast) as buffer:
        buffer.add_batch(rows(4))
        batch = buffer.sample_batch(2)
        buffer.add_batch(batch)
        buffer.add(batch[0])
        buffer.add_batch(batch, priorities=batch["priority"] * 2)
        with buffer.writer() as writer:
            writer.extend(batch)
            writer.append(batch[1])
        with buffer.writer() as writer:
            writer.append(rows(1)[0])
            writer.append(batch[0])
            writer.append(batch[0], priority=0.25)
            with pytest.raises(SchemaError):
                writer.append(batch[0].set("extra", torch.tensor(1)))
        assert buffer.size == 4 + 2 + 1 + 2 + 2 + 1 + 3
        assert sorted(buffer.sample_all().keys()) == ["action", "done", "index", "next", "obs", "row_id"]
        assert priorities(buffer)[14] == 0.25


def frozen_writer(server, buffer):
    """The error of a writer whose server stands still; some of its rows have priorities."""
    writer = buffer.writer(flush_rows=2)
    for row in range(4):
        writer.append(rows(1, row)[0])
    writer.flush()
    freeze(server.pid)
    writer.append(rows(1, 4)[0], priority=0.5)
    writer.append(rows(1, 5)[0], priority=0.25)
    writer.append(rows(1, 6)[0])
    writer.extend(rows(3, 7), priorities=[1.0, 2.0, 3.0])
    with pytest.raises(DeadlineError) as caught:
        writer.flush()
    thaw(server.pid)
    return caught.value.rows


@pytest.mark.parametrize("way", ["add_batch", "extend"])
@pytest.mark.parametrize("cast", [False, True])
def test_rows_that_were_not_acknowledged_keep_their_priorities_when_they_are_given_again(way, cast):
    with (
        server_process() as server,
        RemoteReplayBuffer(server.address, table="p", buffer_size=100, sampler=Prioritized(alpha=1.0), timeout=2, cast=cast) as buffer,
    ):
        left = frozen_writer(server, buffer)
        assert left["action"].tolist() == [4, 5, 6, 7, 8, 9]
        assert [value if value == value else None for value in left["priority"].tolist()] == [0.5, 0.25, None, 1.0, 2.0, 3.0]
        if way == "add_batch":
            buffer.add_batch(left)
        else:
            with buffer.writer() as writer:
                writer.extend(left)
                writer.append(rows(1, 10)[0])
        assert buffer.sample_all()["action"].tolist() == list(range(10 if way == "add_batch" else 11))
        found = priorities(buffer, 4000)
        assert [found[row] for row in range(4, 10)] == [0.5, 0.25, 1.0, 1.0, 2.0, 3.0]
