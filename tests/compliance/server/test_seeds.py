"""The batches of a seed are the same in every call, however they share messages."""

from __future__ import annotations

import queue

import grpc
import numpy as np
import pytest
from safetensors.numpy import load

from conftest import numbers, rows
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer

SEED = (1 << 63) - 1


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


def test_a_seed_gives_the_same_rows_in_every_call_and_grouping(address, table, stub):
    with filled(address, table) as buffer:
        expected = numbers(buffer.sample_batch(16, seed=7))
        for most in (0, 1, 3, 100):
            query = pb.SampleRequest(table=table, batch_size=16, seed=7, batches_per_message=most)
            batches = streamed(stub, query, 10)
            assert batches[0] == expected
            assert len({tuple(batch) for batch in batches}) == 10
            rest = streamed(stub, pb.SampleRequest(table=table, batch_size=16, seed=7, first_batch=4, batches_per_message=most), 6)
            assert rest == batches[4:]
        single = next(stub.SampleBatch(pb.SampleBatchRequest(table=table, batch_size=16, seed=7, batch=9), timeout=20))
        assert load(single.block)["action"].tolist() == batches[9]


@pytest.mark.parametrize("numbers", [{"seed": -1}, {"seed": 1, "first_batch": -1}, {"first_batch": -1}])
def test_the_server_refuses_a_seed_or_number_that_is_negative(address, table, stub, numbers):
    with filled(address, table), pytest.raises(grpc.RpcError) as refused:
        streamed(stub, pb.SampleRequest(table=table, batch_size=4, **numbers), 1)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_last_seed_and_number_work(address, table, stub):
    with filled(address, table):
        query = pb.SampleRequest(table=table, batch_size=4, seed=SEED, first_batch=SEED, batches_per_message=8)
        assert len(streamed(stub, query, 8)) == 8


def test_a_message_carries_a_thousand_batches_at_most(address, table, stub):
    """Each batch is a draw, and while a message is drawn nobody can insert."""
    with filled(address, table):
        requests = [pb.SampleRequest(table=table, batch_size=1, batches_per_message=1 << 20, credits=3000)]
        sizes = [len(load(answer.block)["action"]) for answer in stub.Sample(iter(requests), timeout=20)]
    assert (max(sizes), sum(sizes)) == (1024, 3000)
