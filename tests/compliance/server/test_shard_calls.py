"""What a client asks a server for that is one shard of a buffer: of what it drew, and rows of epochs that go over several tables."""

from __future__ import annotations

import grpc
import pytest
from safetensors.torch import load

from compliance.server.stock_client import INVALID, TIMEOUT, Client, Requests, answers, checked, one, refusal, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb

WINDOW = pb.EpochRows(first_row_id=0, end_row_id=4)
COMES, OVERWRITTEN, REPLACED = 0, 2, 3


def epoch_rows(client: Client, *row_ids: int, generation: str, first: int = 4, end: int = 14, **more: object) -> list[pb.SampleByIndexResponse]:
    """The answers of an epoch over rows of the ids from `first` to `end`."""
    epoch = pb.EpochRows(first_row_id=first, end_row_id=end, replace=more.pop("replace", False))
    request = pb.SampleByIndexRequest(table=client.table, row_ids=row_ids, generation_id=generation, epoch=epoch, **more)
    return list(client.stub.SampleByIndex(request, timeout=TIMEOUT))


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


def filled(client: Client, rows: int = 14) -> str:
    """A table of 10 slots with so many rows, and its generation."""
    client.create(10)
    client.add(transitions(rows))
    return client.describe().generation_id


def test_rows_of_an_epoch_come_by_their_ids_in_order_and_an_answer_says_what_became_of_each(client):
    generation = filled(client)
    (response,) = epoch_rows(client, 13, 4, 9, 4, generation=generation)
    batch = one(iter([response]))
    assert checked(batch) == batch["row_id"].tolist() == [13, 4, 9, 4]
    assert (list(response.outcomes), response.oldest_row_id) == ([COMES] * 4, 4)
    client.add(transitions(2, 14))
    (response,) = epoch_rows(client, 13, 4, 9, 5, generation=generation)
    assert checked(one(iter([response]))) == [13, 9]
    assert (response.batch_rows, list(response.outcomes), response.oldest_row_id) == (2, [COMES, OVERWRITTEN, COMES, OVERWRITTEN], 6)
    (response,) = epoch_rows(client, 13, 4, 9, 5, generation=generation, replace=True)
    assert checked(one(iter([response]))) == [13, 14, 9, 15]
    assert list(response.outcomes) == [COMES, REPLACED, COMES, REPLACED]
    assert list(load(epoch_rows(client, 9, generation=generation, fields=["done"])[0].block)) == ["done"]


def test_where_no_row_is_left_one_answer_without_a_block_says_so(client):
    generation = filled(client)
    client.add(transitions(10, 14))
    (response,) = epoch_rows(client, 5, 4, generation=generation)
    assert (response.batch_rows, response.block, list(response.outcomes), response.oldest_row_id) == (0, b"", [OVERWRITTEN] * 2, 14)


def test_an_id_that_is_not_of_the_window_is_refused(client):
    generation = filled(client)
    for wrong in (3, 14, -1):
        with pytest.raises(grpc.RpcError) as raised:
            epoch_rows(client, 5, wrong, generation=generation)
        assert refusal(raised.value) == ("RowIdError", grpc.StatusCode.OUT_OF_RANGE)


@pytest.mark.parametrize("window", [(5, 15), (-1, 6), (3, 14)], ids=str)
def test_a_window_that_cannot_be_is_refused(client, window):
    generation = filled(client)
    with pytest.raises(grpc.RpcError) as raised:
        epoch_rows(client, 5, generation=generation, first=window[0], end=window[1])
    assert refusal(raised.value) == ("TokenError", INVALID)


def test_ids_of_another_generation_are_refused(client):
    generation = filled(client)
    assert checked(one(iter(epoch_rows(client, 8, 6, generation=generation)))) == [8, 6]
    client.stub.Reset(pb.ResetRequest(table=client.table), timeout=TIMEOUT)
    client.add(transitions(10))
    for named in (generation, ""):
        with pytest.raises(grpc.RpcError) as raised:
            epoch_rows(client, 8, 6, generation=named)
        assert refusal(raised.value) == ("TableChangedError", grpc.StatusCode.ABORTED)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "slots in index (0)"),
        ({"row_ids": [0]}, "row_ids (1) need epoch"),
        ({"row_ids": [0], "index": [0]}, "row_ids (1) need epoch"),
        ({"row_ids": [0], "generation_id": "x"}, "row_ids (1) need epoch"),
        ({"index": [0], "generation_id": "x"}, "generation_id ('x') belongs to the row_ids of an epoch"),
        ({"epoch": WINDOW}, "row_ids (0)"),
        ({"epoch": WINDOW, "index": [0]}, "index (1 slots) and epoch"),
        ({"epoch": WINDOW, "index": [0], "row_ids": [0]}, "index (1 slots) and epoch"),
        ({"epoch": WINDOW, "row_ids": [0], "with_priorities": True}, "with_priorities"),
        ({"epoch": WINDOW, "row_ids": [0] * 8193}, "row_ids (8193) must be a whole number from 1 to 8192"),
    ],
)
def test_a_request_names_rows_by_their_slots_or_rows_of_an_epoch_by_their_ids(client, fields, words):
    filled(client, 4)
    with pytest.raises(grpc.RpcError) as raised:
        answers(client, "SampleByIndex", table=client.table, **fields)
    assert raised.value.code() == INVALID
    assert words in raised.value.details()


def test_priorities_come_with_rows_by_their_slots_and_weigh_in_the_totals(client):
    client.stub.CreateTable(
        pb.CreateTableRequest(table=client.table, buffer_size=10, sampler=pb.Sampler(name="prioritized", alpha=0.5)), timeout=TIMEOUT
    )
    client.add(transitions(14))
    update = pb.PriorityUpdate(row_ids=[12, 13], priorities=[4, 9])
    client.stub.UpdatePriorities(pb.UpdatePrioritiesRequest(table=client.table, update=update), timeout=TIMEOUT)
    request = pb.SampleByIndexRequest(table=client.table, index=[3, 2, 5], with_priorities=True)
    batch = one(client.stub.SampleByIndex(request, timeout=TIMEOUT))
    assert batch["row_id"].tolist() == [13, 12, 5]
    assert batch["priority"].tolist() == [9, 4, 1]
    assert described(client, wants_totals=True).totals == pb.DrawTotals(rows=10, mass=8 + 2 + 3, least=1)


def test_priorities_of_rows_that_have_none_are_refused(client):
    filled(client, 4)
    with pytest.raises(grpc.RpcError) as raised:
        answers(client, "SampleByIndex", table=client.table, index=[0], with_priorities=True)
    assert refusal(raised.value) == ("NoPrioritiesError", grpc.StatusCode.FAILED_PRECONDITION)
