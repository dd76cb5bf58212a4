"""A Sample call that names the rows of each of its batches, in place of granting credits."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from compliance.server.stock_client import MIB, TIMEOUT, Client, Requests, batches, checked, one, refusal, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb


def made(client: Client, **settings: object) -> None:
    client.stub.CreateTable(pb.CreateTableRequest(table=client.table, buffer_size=20, **settings), timeout=TIMEOUT)


def named(client: Client, *rows: int, query: dict[str, object] | None = None, **more: object) -> Iterator[pb.SampleResponse]:
    """The answers to a call of at most 8 rows a batch, which names batches of so many rows one after the other."""
    first = pb.SampleRequest(table=client.table, batch_size=8, wants_totals=True, **(query or {}))
    nexts = [pb.SampleRequest(next=[pb.NextBatch(rows=count, **more)]) for count in rows]
    return client.stub.Sample(iter([first, *nexts]), timeout=TIMEOUT)


def test_each_batch_has_the_rows_that_it_was_named_with(client):
    client.create(10)
    client.add(transitions(5))
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=8, wants_totals=True))
    responses = client.stub.Sample(iter(requests), timeout=TIMEOUT)
    for rows in (3, 1, 8, 2):
        requests.send(pb.SampleRequest(next=[pb.NextBatch(rows=rows)]))
        response = next(responses)
        assert (response.batch_rows, len(checked(one(iter([response]))))) == (rows, rows)
        assert response.totals.rows == 5
    requests.send(pb.SampleRequest(next=[pb.NextBatch(rows=rows) for rows in (7, 7, 4)]))
    requests.half_close()
    assert [len(checked(batch)) for batch in batches(responses)] == [7, 7, 4]
    assert responses.code() is grpc.StatusCode.OK
    assert client.describe().sample_count == 3 + 1 + 8 + 2 + 7 + 7 + 4


def test_no_named_batch_is_drawn_before_it_was_named(client):
    client.create(1)
    client.add(transitions(1))
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=8))
    received = batches(client.stub.Sample(iter(requests), timeout=TIMEOUT))
    for row_id in range(1, 20):
        client.add(transitions(1, row_id))
        requests.send(pb.SampleRequest(next=[pb.NextBatch(rows=2)]))
        assert next(received)["row_id"].tolist() == [row_id, row_id]
    requests.half_close()


def test_a_large_batch_comes_in_several_blocks(client):
    client.create(8)
    client.add({"image": transitions(8)["obs"][:, :1].byte().repeat(1, MIB)})
    found = list(batches(named(client, 2, 7)))
    assert [len(batch["image"]) for batch in found] == [2, 7]
    assert all(batch["image"][:, 0].tolist() == batch["image"][:, -1].tolist() == batch["index"].tolist() for batch in found)


def seeded(client: Client, rows: int, seed: int, batch: int) -> list[int]:
    request = pb.SampleBatchRequest(table=client.table, batch_size=rows, seed=seed, batch=batch)
    return checked(one(client.stub.SampleBatch(request, timeout=TIMEOUT)))


def test_a_named_batch_is_that_of_the_seed_and_the_number_that_it_names(client):
    client.create(100)
    client.add(transitions(50))
    for batch in (4, 0):
        assert checked(next(batches(named(client, 5, seed=7, batch=batch)))) == seeded(client, 5, 7, batch)


def test_named_batches_of_a_call_with_a_seed_are_its_next_ones(client):
    client.create(100)
    client.add(transitions(50))
    found = [checked(batch) for batch in batches(named(client, 5, 3, 6, query={"seed": 7, "first_batch": 2}))]
    assert found == [seeded(client, rows, 7, batch) for rows, batch in ((5, 2), (3, 3), (6, 4))]


def test_rows_that_leave_come_once_each_in_named_batches(client):
    made(client, max_times_sampled=1)
    client.add(transitions(10))
    found = [row for batch in batches(named(client, 3, 1, 6)) for row in checked(batch)]
    assert sorted(found) == list(range(10))
    assert (client.describe().sample_count, client.describe().size) == (10, 0)


def test_a_named_batch_waits_as_long_as_it_says(client):
    made(client, rate_limiter=pb.RateLimiter(name="min_size", min_size=8))
    client.add(transitions(4))
    with pytest.raises(grpc.RpcError) as raised:
        list(named(client, 1, query={"wait_seconds": TIMEOUT}, wait_seconds=0.0))
    assert refusal(raised.value) == ("RateLimitedError", grpc.StatusCode.RESOURCE_EXHAUSTED)
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=8, wait_seconds=0.0))
    received = batches(client.stub.Sample(iter(requests), timeout=TIMEOUT))
    requests.send(pb.SampleRequest(next=[pb.NextBatch(rows=2, wait_seconds=TIMEOUT)]))
    client.add(transitions(4, 4))
    assert len(checked(next(received))) == 2
    requests.half_close()


WRONG = {
    "no rows": pb.SampleRequest(next=[pb.NextBatch(rows=2), pb.NextBatch()]),
    "negative rows": pb.SampleRequest(next=[pb.NextBatch(rows=-1)]),
    "too many rows": pb.SampleRequest(next=[pb.NextBatch(rows=9)]),
    "negative wait": pb.SampleRequest(next=[pb.NextBatch(rows=2, wait_seconds=-1)]),
    "no number": pb.SampleRequest(next=[pb.NextBatch(rows=2, wait_seconds=float("nan"))]),
    "negative seed": pb.SampleRequest(next=[pb.NextBatch(rows=2, seed=-1)]),
    "negative batch": pb.SampleRequest(next=[pb.NextBatch(rows=2, seed=1, batch=-1)]),
    "credits too": pb.SampleRequest(next=[pb.NextBatch(rows=2)], credits=1),
    "too many": pb.SampleRequest(next=[pb.NextBatch(rows=2)] * 1025),
}


@pytest.mark.parametrize("counted", [False, True], ids=["free", "counted"])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_batch_that_cannot_be_ends_the_call_and_draws_nothing_of_its_message(client, wrong, counted):
    made(client, max_times_sampled=int(counted) * 5)
    client.add(transitions(10))
    requests = Requests(pb.SampleRequest(table=client.table, batch_size=8), pb.SampleRequest(next=[pb.NextBatch(rows=3)]))
    received = client.stub.Sample(iter(requests), timeout=TIMEOUT)
    assert len(checked(one(iter([next(received)])))) == 3
    requests.send(wrong)
    with pytest.raises(grpc.RpcError) as raised:
        list(received)
    assert refusal(raised.value) == ("InvalidArgumentError", grpc.StatusCode.INVALID_ARGUMENT)
    assert client.describe().sample_count == 3


@pytest.mark.parametrize(
    "requests",
    [
        [pb.SampleRequest(next=[pb.NextBatch(rows=1)])],
        [pb.SampleRequest(credits=1), pb.SampleRequest(next=[pb.NextBatch(rows=1)])],
        [pb.SampleRequest(), pb.SampleRequest(next=[pb.NextBatch(rows=1)]), pb.SampleRequest(credits=1)],
    ],
    ids=["in the first message", "after a credit", "before a credit"],
)
def test_batches_are_named_after_the_first_message_and_without_credits(client, requests):
    client.create(10)
    client.add(transitions(5))
    requests[0].MergeFrom(pb.SampleRequest(table=client.table, batch_size=4))
    with pytest.raises(grpc.RpcError) as raised:
        list(client.stub.Sample(iter(requests), timeout=TIMEOUT))
    assert refusal(raised.value) == ("InvalidArgumentError", grpc.StatusCode.INVALID_ARGUMENT)
