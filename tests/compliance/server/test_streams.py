"""Calls that are held open: acknowledgements in order, batches by credit, epochs."""

from __future__ import annotations

import itertools

import grpc
import pytest
import torch
from safetensors.torch import load

from compliance.server.stock_client import MIB, TIMEOUT, Client, Requests, batches, block, checked, refusal, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

# -- AddBatch ---------------------------------------------------------------------------------------------------------------------------------


def test_blocks_are_acknowledged_in_order_while_the_stream_is_open(client):
    client.create(100)
    requests = Requests(pb.AddBatchRequest(table=client.table, block=block(transitions(3))))
    acknowledged = client.stub.AddBatch(iter(requests), timeout=TIMEOUT)
    assert (next(acknowledged).first_row_id, client.describe().size) == (0, 3)
    for n in (2, 1, 4):
        requests.send(pb.AddBatchRequest(block=block(transitions(n, 3))))
    answers = [next(acknowledged) for _ in range(3)]
    assert [(answer.first_row_id, answer.rows) for answer in answers] == [(3, 2), (5, 1), (6, 4)]
    assert client.describe().size == 10
    requests.half_close()
    assert list(acknowledged) == []
    assert acknowledged.code() is grpc.StatusCode.OK


def test_blocks_may_be_sent_before_any_acknowledgement_is_read(client):
    client.create(1000)
    requests = [pb.AddBatchRequest(table=client.table, block=block(transitions(2, 2 * n))) for n in range(100)]
    answers = list(client.stub.AddBatch(iter(requests), timeout=TIMEOUT))
    assert [(answer.first_row_id, answer.rows) for answer in answers] == [(2 * n, 2) for n in range(100)]
    assert checked(client.sample_all()) == list(range(200))


def test_a_refused_block_ends_the_stream_and_those_before_it_stay(client):
    client.create(100)
    good = [pb.AddBatchRequest(table=client.table, block=block(transitions(2, 2 * n))) for n in range(3)]
    requests = [*good, pb.AddBatchRequest(block=block({"obs": torch.zeros(2, 2)})), *good]
    responses = client.stub.AddBatch(iter(requests), timeout=TIMEOUT)
    assert [next(responses).first_row_id for _ in range(3)] == [0, 2, 4]
    with pytest.raises(grpc.RpcError) as raised:
        next(responses)
    assert refusal(raised.value) == ("SchemaError", grpc.StatusCode.INVALID_ARGUMENT)
    assert checked(client.sample_all()) == list(range(6))


# -- credits ----------------------------------------------------------------------------------------------------------------------------------


def test_as_many_batches_come_as_were_granted_and_the_half_close_ends_the_stream(client):
    client.create(10)
    client.add(transitions(5))
    first = pb.SampleRequest(table=client.table, batch_size=4, credits=3)
    responses = client.stub.Sample(iter([first, pb.SampleRequest(), pb.SampleRequest(credits=2)]), timeout=TIMEOUT)
    assert [len(checked(batch)) for batch in batches(responses)] == [4] * 5
    assert responses.code() is grpc.StatusCode.OK


def test_without_credit_nothing_comes(client):
    client.create(10)
    client.add(transitions(5))
    for call, query in ((client.stub.Sample, pb.SampleRequest), (client.stub.Epoch, pb.EpochRequest)):
        responses = call(iter([query(table=client.table, batch_size=4)]), timeout=TIMEOUT)
        assert list(responses) == []
        assert responses.code() is grpc.StatusCode.OK


def test_no_batch_is_drawn_before_it_is_granted(client):
    """The table holds one row, a newer one before each grant: a batch that was sent ahead would hold an older row."""
    client.create(1)
    client.add(transitions(1))
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=2, credits=2))
    responses = client.stub.Sample(iter(requests), timeout=TIMEOUT)
    received = batches(responses)
    assert [next(received)["row_id"].tolist() for _ in range(2)] == [[0, 0], [0, 0]]
    for row_id in range(1, 30):
        client.add(transitions(1, row_id))
        requests.send(pb.SampleRequest(credits=0))
        requests.send(pb.SampleRequest(credits=1))
        assert next(received)["row_id"].tolist() == [row_id, row_id]
    requests.half_close()
    assert list(received) == []
    assert responses.code() is grpc.StatusCode.OK


def test_a_credit_is_for_a_batch_also_where_it_has_several_blocks(client):
    client.create(8)
    client.add({"image": torch.arange(8, dtype=torch.uint8).unsqueeze(1).repeat(1, MIB)})
    query = pb.SampleRequest(table=client.table, batch_size=8, credits=2)
    responses = list(client.stub.Sample(iter([query]), timeout=TIMEOUT))
    assert len(responses) == 8
    for batch in batches(iter(responses)):
        assert batch["image"][:, 0].tolist() == batch["image"][:, -1].tolist() == batch["index"].tolist()


def test_a_cancelled_stream_gives_its_place_back(own_server):
    with own_server(max_streams=1) as address, grpc.insecure_channel(address) as channel:
        client = Client(channel, ReplayBufferServiceStub(channel), "one-stream")
        client.create(4)
        client.add(transitions(4))
        query = pb.SampleRequest(table=client.table, batch_size=2, credits=1)
        requests = Requests(query)
        first = client.stub.Sample(iter(requests), timeout=TIMEOUT)
        assert len(checked(load(next(first).block))) == 2
        with pytest.raises(grpc.RpcError) as raised:
            list(client.stub.Sample(iter([query]), timeout=TIMEOUT))
        assert refusal(raised.value) == ("StreamLimitError", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert client.describe().size == 4
        requests.half_close()
        assert list(first) == []
        assert len(list(client.stub.Sample(iter([query]), timeout=TIMEOUT))) == 1


# -- epochs -----------------------------------------------------------------------------------------------------------------------------------


def epoch(client: Client, **query: object) -> list[list[int]]:
    request = pb.EpochRequest(table=client.table, credits=1000, **query)
    return [checked(batch) for batch in batches(client.stub.Epoch(iter([request]), timeout=TIMEOUT))]


def test_an_epoch_yields_every_row_in_slot_order_and_ends(client):
    client.create(10)
    client.add(transitions(7))
    assert epoch(client, batch_size=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert epoch(client, batch_size=3, drop_last=True) == [[0, 1, 2], [3, 4, 5]]
    assert epoch(client, batch_size=4, n_epochs=2) == [[0, 1, 2, 3], [4, 5, 6]] * 2


def test_a_shuffled_epoch_is_a_permutation_that_the_seed_decides(client):
    client.create(50)
    client.add(transitions(50))
    orders = [list(itertools.chain(*epoch(client, batch_size=8, shuffle=True, n_epochs=2, seed=seed))) for seed in (0, 0, 1)]
    for order in orders:
        assert sorted(order[:50]) == sorted(order[50:]) == list(range(50))
        assert order[:50] != order[50:]
    assert orders[0] == orders[1] != orders[2]


def test_an_epoch_sends_its_initial_metadata_before_any_credit_and_ends_without_a_half_close(client):
    client.create(10)
    client.add(transitions(5))
    requests = Requests(pb.EpochRequest(table=client.table, batch_size=2))
    responses = client.stub.Epoch(iter(requests), timeout=TIMEOUT)
    responses.initial_metadata()
    received = batches(responses)
    found = []
    for _ in range(3):
        requests.send(pb.EpochRequest(credits=1))
        found.append(checked(next(received)))
    assert found == [[0, 1], [2, 3], [4]]
    assert list(received) == []
    assert responses.code() is grpc.StatusCode.OK
    requests.half_close()


def test_an_epoch_is_not_read_ahead_of_its_credits(client):
    """Each grant follows a write to the slot that comes next: had it been read ahead, it would hold the older row."""
    client.create(20)
    client.add(transitions(20))
    requests = Requests(pb.EpochRequest(table=client.table, batch_size=1))
    received = batches(client.stub.Epoch(iter(requests), timeout=TIMEOUT))
    for slot in range(20):
        client.add(transitions(1, 20 + slot))
        requests.send(pb.EpochRequest(credits=1))
        assert next(received)["row_id"].tolist() == [20 + slot]
    assert list(received) == []
    requests.half_close()


def test_an_epoch_of_a_table_that_is_reset_ends_with_its_error(client):
    client.create(10)
    client.add(transitions(4))
    requests = Requests(pb.EpochRequest(table=client.table, batch_size=2, credits=1))
    received = batches(client.stub.Epoch(iter(requests), timeout=TIMEOUT))
    assert checked(next(received)) == [0, 1]
    client.stub.Reset(pb.ResetRequest(table=client.table), timeout=TIMEOUT)
    requests.send(pb.EpochRequest(credits=1))
    with pytest.raises(grpc.RpcError) as raised:
        next(received)
    assert refusal(raised.value) == ("TableChangedError", grpc.StatusCode.ABORTED)
    requests.half_close()


def test_the_updates_of_a_message_count_in_their_order(client):
    sampler = pb.Sampler(name="prioritized", alpha=1.0)
    client.stub.CreateTable(pb.CreateTableRequest(table=client.table, buffer_size=4, sampler=sampler), timeout=TIMEOUT)
    client.add(transitions(4))
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=64, credits=0, knows_priorities=True))
    responses = client.stub.Sample(iter(requests), timeout=TIMEOUT)
    first = pb.PriorityUpdate(row_ids=[0, 1, 2, 3], priorities=[5, 0, 6, 0])
    second = pb.PriorityUpdate(row_ids=[2, 1, 0, 1], priorities=[0, 7, 0, 8])
    requests.send(pb.SampleRequest(credits=1, updates=[first, second]))
    response = next(responses)
    batch = load(response.block)
    assert (set(batch["row_id"].tolist()), set(batch["priority"].tolist())) == ({1}, {8.0})
    assert (response.updated, response.stale) == (8, 0)
    requests.half_close()
    assert list(responses) == []


def test_no_update_of_a_message_is_made_where_one_cannot_be(client):
    client.stub.CreateTable(
        pb.CreateTableRequest(table=client.table, buffer_size=4, sampler=pb.Sampler(name="prioritized", alpha=1.0)), timeout=TIMEOUT
    )
    client.add(transitions(4))
    good, bad = pb.PriorityUpdate(row_ids=[0, 1], priorities=[9, 9]), pb.PriorityUpdate(row_ids=[2, 3], priorities=[9])
    requests = [pb.SampleRequest(table=client.table, batch_size=4), pb.SampleRequest(credits=1, updates=[good, bad])]
    with pytest.raises(grpc.RpcError) as raised:
        list(client.stub.Sample(iter(requests), timeout=TIMEOUT))
    assert refusal(raised.value) == ("InvalidArgumentError", grpc.StatusCode.INVALID_ARGUMENT)
    query = pb.SampleRequest(table=client.table, batch_size=64, credits=1, knows_priorities=True)
    (batch,) = batches(client.stub.Sample(iter([query]), timeout=TIMEOUT))
    assert set(batch["priority"].tolist()) == {1.0}
