"""What a client asks a server for that is one shard of a buffer: of what it drew, and rows by their ids."""

from __future__ import annotations

import grpc
import pytest
from safetensors.torch import load

from compliance.server.stock_client import INVALID, TIMEOUT, Client, Requests, answers, checked, one, refusal, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb


def by_id(client: Client, *row_ids: int, **more: object) -> list[pb.SampleByIndexResponse]:
    return list(client.stub.SampleByIndex(pb.SampleByIndexRequest(table=client.table, row_ids=row_ids, **more), timeout=TIMEOUT))


def drawn(client: Client, **more: object) -> pb.SampleBatchResponse:
    (response,) = client.stub.SampleBatch(pb.SampleBatchRequest(table=client.table, batch_size=4, **more), timeout=TIMEOUT)
    return response


def described(client: Client, **more: object) -> pb.DescribeResponse:
    return client.stub.Describe(pb.DescribeRequest(table=client.table, **more), timeout=TIMEOUT)


def test_who_does_not_ask_is_not_told_of_what_was_drawn(client):
    client.create(10)
    client.add(transitions(3))
    assert not drawn(client).HasField("totals")
    assert not client.describe().HasField("totals")


def test_batches_say_of_how_many_rows_they_were_drawn(client):
    client.create(10)
    assert described(client, wants_totals=True).totals == pb.DrawTotals()
    client.add(transitions(13))
    expected = pb.DrawTotals(rows=10, mass=10, least=1)
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=4, credits=2, wants_totals=True))
    requests.half_close()
    streamed = list(client.stub.Sample(iter(requests), timeout=TIMEOUT))
    assert [response.totals for response in (drawn(client, wants_totals=True), *streamed)] == [expected] * 3
    assert described(client, wants_totals=True).totals == described(client, wants_totals=True, sampler="uniform").totals == expected


def test_a_draw_that_is_described_and_cannot_be_is_refused(client):
    client.create(10)
    for more in ({"sampler": "mine"}, {"windows": pb.WindowQuery()}):
        with pytest.raises(grpc.RpcError) as raised:
            described(client, wants_totals=True, **more)
        assert raised.value.code() == INVALID


def test_rows_come_by_their_ids_in_order_and_those_that_are_gone_are_left_out(client):
    client.create(10)
    client.add(transitions(14))
    responses = by_id(client, 13, 2, 4, 4, 0)
    assert [response.batch_rows for response in responses] == [3]
    batch = one(iter(responses))
    assert checked(batch) == batch["row_id"].tolist() == [13, 4, 4]
    assert list(load(by_id(client, 9, fields=["done"])[0].block)) == ["done"]


def test_where_no_row_is_left_one_answer_without_a_block_says_so(client):
    client.create(10)
    client.add(transitions(14))
    (response,) = by_id(client, 2, 0)
    assert (response.batch_rows, response.block) == (0, b"")


def test_an_id_that_was_never_given_is_refused(client):
    client.create(10)
    client.add(transitions(4))
    for wrong in (4, -1):
        with pytest.raises(grpc.RpcError) as raised:
            by_id(client, 0, wrong)
        assert refusal(raised.value) == ("RowIdError", grpc.StatusCode.OUT_OF_RANGE)


def test_ids_of_another_generation_are_refused(client):
    client.create(10)
    client.add(transitions(4))
    generation = client.describe().generation_id
    assert checked(one(iter(by_id(client, 3, 1, generation_id=generation)))) == [3, 1]
    client.stub.Reset(pb.ResetRequest(table=client.table), timeout=TIMEOUT)
    with pytest.raises(grpc.RpcError) as raised:
        by_id(client, 3, 1, generation_id=generation)
    assert refusal(raised.value) == ("TableChangedError", grpc.StatusCode.ABORTED)


@pytest.mark.parametrize("fields", [{"row_ids": [0], "index": [0]}, {"index": [0], "generation_id": "x"}, {}, {"row_ids": [0] * ((1 << 20) + 1)}])
def test_a_request_names_rows_in_one_way(client, fields):
    client.create(10)
    client.add(transitions(4))
    with pytest.raises(grpc.RpcError) as raised:
        answers(client, "SampleByIndex", table=client.table, **fields)
    assert raised.value.code() == INVALID


def test_priorities_come_with_rows_by_their_ids(client):
    client.stub.CreateTable(
        pb.CreateTableRequest(table=client.table, buffer_size=10, sampler=pb.Sampler(name="prioritized", alpha=0.5)), timeout=TIMEOUT
    )
    client.add(transitions(14))
    update = pb.PriorityUpdate(row_ids=[12, 13], priorities=[4, 9])
    client.stub.UpdatePriorities(pb.UpdatePrioritiesRequest(table=client.table, update=update), timeout=TIMEOUT)
    batch = one(iter(by_id(client, 13, 0, 12, 5, with_priorities=True)))
    assert batch["row_id"].tolist() == [13, 12, 5]
    assert batch["priority"].tolist() == [9, 4, 1]
    assert described(client, wants_totals=True).totals == pb.DrawTotals(rows=10, mass=8 + 2 + 3, least=1)


def test_priorities_of_rows_that_have_none_are_refused(client):
    client.create(10)
    client.add(transitions(4))
    with pytest.raises(grpc.RpcError) as raised:
        by_id(client, 0, with_priorities=True)
    assert refusal(raised.value) == ("NoPrioritiesError", grpc.StatusCode.FAILED_PRECONDITION)
