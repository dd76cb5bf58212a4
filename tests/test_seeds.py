"""Random batches that can be drawn again: the same seed and the same rows give the same batches, however they travel."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
from safetensors.numpy import load

from conftest import numbers, rows
from tdreplay.errors import InvalidArgumentError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer

SEED = (1 << 63) - 1


@pytest.fixture
def stub(address) -> Iterator[ReplayBufferServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield ReplayBufferServiceStub(channel)


def filled(address: str, table: str, buffer_size: int = 100) -> RemoteReplayBuffer:
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=buffer_size)
    buffer.add_batch(rows(100))
    return buffer


def streamed(stub: ReplayBufferServiceStub, query: pb.SampleRequest, batches: int) -> list[list[int]]:
    """The numbers of the rows of so many batches of a call."""
    requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
    query.credits = batches
    requests.put(query)
    requests.put(None)
    found = [(load(answer.block)["action"], answer.batch_rows) for answer in stub.Sample(iter(requests.get, None), timeout=20)]
    return [batch.tolist() for numbers, size in found for batch in np.split(numbers, len(numbers) // size)]


def test_a_seed_gives_the_same_rows_in_process_and_in_every_call_and_grouping(address, table, stub):
    with filled(address, table) as remote, ReplayBuffer("cpu", "cpu", 100) as local:
        local.add_batch(rows(100))
        expected = numbers(local.sample_batch(16, seed=7))
        assert numbers(remote.sample_batch(16, seed=7)) == expected
        for most in (0, 1, 3, 100):
            query = pb.SampleRequest(table=table, batch_size=16, seed=7, batches_per_message=most)
            batches = streamed(stub, query, 10)
            assert batches[0] == expected
            assert len({tuple(batch) for batch in batches}) == 10
            rest = streamed(stub, pb.SampleRequest(table=table, batch_size=16, seed=7, first_batch=4, batches_per_message=most), 6)
            assert rest == batches[4:]
        single = next(stub.SampleBatch(pb.SampleBatchRequest(table=table, batch_size=16, seed=7, batch=9), timeout=20))
        assert load(single.block)["action"].tolist() == batches[9]


def test_the_draws_depend_on_the_order_of_rows_and_not_on_their_ids():
    with ReplayBuffer("cpu", "cpu", 100) as fresh, ReplayBuffer("cpu", "cpu", 100) as wrapped:
        fresh.add_batch(rows(100))
        wrapped.add_batch(rows(37))
        wrapped.add_batch(rows(100))
        assert numbers(wrapped.sample_batch(64, seed=1)) == numbers(fresh.sample_batch(64, seed=1))
        wrapped.reset()
        wrapped.add_batch(rows(100))
        assert numbers(wrapped.sample_batch(64, seed=1)) == numbers(fresh.sample_batch(64, seed=1))


def test_a_seeded_buffer_draws_the_batches_of_its_seed_in_turn():
    with ReplayBuffer("cpu", "cpu", 100, seed=SEED) as one, ReplayBuffer("cpu", "cpu", 100, seed=SEED) as other:
        for buffer in (one, other):
            buffer.add_batch(rows(100))
        first = numbers(one.sample_batch(32))
        drawn = [first, numbers(one.get_next_batch(32)), numbers(one.sample_random(32))]
        assert drawn == [numbers(other.sample_batch(32)) for _ in range(3)]
        assert len({tuple(batch) for batch in drawn}) == 3
        assert numbers(one.sample_batch(32, seed=SEED)) == first


def test_a_seeded_buffer_shuffles_its_epochs_in_the_same_orders():
    def orders() -> list[list[int]]:
        with ReplayBuffer("cpu", "cpu", 100, seed=3) as buffer:
            buffer.add_batch(rows(100))
            return [numbers(batch) for _ in range(2) for batch in buffer.create_epoch_iterator(100, shuffle=True)]

    assert orders() == orders()
    assert len({tuple(order) for order in orders()}) == 2


def test_without_a_seed_batches_differ():
    with ReplayBuffer("cpu", "cpu", 100) as buffer:
        buffer.add_batch(rows(100))
        assert not torch.equal(buffer.sample_batch(64)["action"], buffer.sample_batch(64)["action"])


@pytest.mark.parametrize("seed", [-1, 1 << 63, 10**5000, 1.5, "1", True], ids=["negative", "65 bits", "huge", "float", "text", "bool"])
def test_a_seed_is_a_whole_number_of_63_bits(make_buffer, seed):
    buffer = make_buffer(10)
    buffer.add_batch(rows(10))
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        buffer.sample_batch(4, seed=seed)
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        buffer.create_epoch_iterator(4, shuffle=True, seed=seed)
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        ReplayBuffer("cpu", "cpu", 10, seed=seed)


@pytest.mark.parametrize("numbers", [{"seed": -1}, {"seed": 1, "first_batch": -1}, {"first_batch": -1}])
def test_the_server_refuses_a_seed_or_number_that_is_negative(address, table, stub, numbers):
    with filled(address, table), pytest.raises(grpc.RpcError) as refused:
        streamed(stub, pb.SampleRequest(table=table, batch_size=4, **numbers), 1)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_last_seed_and_number_work(address, table, stub):
    with filled(address, table):
        query = pb.SampleRequest(table=table, batch_size=4, seed=SEED, first_batch=SEED, batches_per_message=8)
        assert len(streamed(stub, query, 8)) == 8
