"""A client made of the generated code and the safetensors package alone stores rows and reads them."""

from __future__ import annotations

import itertools
import json

import grpc
import pytest
import torch

from compliance.server.stock_client import INVALID, MIB, TIMEOUT, checked, one, refusal, transitions
from tdreplay.fields import DTYPES
from tdreplay.v1 import replay_buffer_pb2 as pb


def test_added_rows_come_back_by_index(client):
    assert client.create(10) is True
    stored = client.add(transitions(6))
    assert (stored.first_row_id, stored.rows) == (0, 6)
    batch = client.sample_by_index([4, 0, 4])
    assert checked(batch) == batch["index"].tolist() == batch["row_id"].tolist() == [4, 0, 4]
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "obs": (torch.float32, (3, 2)),
        "done": (torch.bool, (3,)),
        "next.obs": (torch.float32, (3,)),
        "index": (torch.int64, (3,)),
        "row_id": (torch.int64, (3,)),
    }


def test_rows_that_wrap_around_keep_counting(client):
    client.create(4)
    assert client.add(transitions(3)).first_row_id == 0
    stored = client.add(transitions(7, 3))
    assert (stored.first_row_id, stored.rows) == (3, 7)
    batch = client.sample_all()
    assert checked(batch) == batch["row_id"].tolist() == [8, 9, 6, 7]
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_a_random_batch_has_the_rows_asked_for(client):
    client.create(10)
    client.add(transitions(5))
    batch = client.sample_batch(200)
    assert set(checked(batch)) == {0, 1, 2, 3, 4}
    assert checked(batch) == batch["index"].tolist()


def test_only_the_fields_that_are_named_travel(client):
    client.create(10)
    client.add(transitions(5))
    assert {name: tensor.tolist() for name, tensor in client.sample_by_index([2], "row_id", "next.obs").items()} == {"row_id": [2], "next.obs": [3.0]}
    assert client.sample_batch(3, "done").keys() == {"done"}


DTYPE_CASES = [pytest.param(name, shape, id=f"{name}{list(shape)}") for name in DTYPES for shape in ((), (3,))]


@pytest.mark.parametrize(("name", "shape"), DTYPE_CASES)
def test_every_dtype_comes_back_bit_for_bit(client, name, shape):
    dtype = DTYPES[name]
    raw = torch.arange(2 * torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8)
    sent = (raw % 2 if name == "BOOL" else raw).view(dtype).view(2, *shape)
    client.create(4)
    client.add({"a": sent})
    (read,) = client.sample_by_index([0, 1], "a").values()
    assert (read.dtype, read.shape) == (dtype, sent.shape)
    assert torch.equal(read.flatten().view(torch.uint8), sent.flatten().view(torch.uint8))


def test_rows_that_are_batches_travel_with_their_batch_shape(client):
    client.create(10)
    client.add({"obs": torch.arange(30.0).reshape(2, 5, 3)}, (2, 5))
    schema = client.describe().schema
    assert (list(schema.row_shape), [list(field.shape) for field in schema.fields]) == ([5], [[5, 3]])
    (response,) = client.stub.SampleAll(pb.SampleAllRequest(table=client.table), timeout=TIMEOUT)
    length = int.from_bytes(response.block[:8], "little")
    header = json.loads(response.block[8 : 8 + length])
    assert header["__metadata__"]["batch_shape"] == "[2, 5]"
    assert {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"} == {"obs": [2, 5, 3], "index": [2], "row_id": [2]}


def test_a_table_is_described_with_its_schema(client):
    client.create(4)
    assert not client.describe().HasField("schema")
    client.add(transitions(6))
    described = client.describe()
    assert (described.buffer_size, described.size, described.pointer, described.write_count, described.storing_device) == (4, 4, 2, 6, "cpu")
    assert [(field.name, field.dtype, list(field.shape)) for field in described.schema.fields] == [
        ("done", "BOOL", []),
        ("next.obs", "F32", []),
        ("obs", "F32", [2]),
    ]


def test_a_large_table_travels_as_blocks_of_whole_rows(client):
    client.create(20)
    sent = {"image": torch.arange(20, dtype=torch.uint8).unsqueeze(1).repeat(1, MIB // 2), "number": torch.arange(20)}
    client.add(sent)
    responses = list(client.stub.SampleAll(pb.SampleAllRequest(table=client.table), timeout=TIMEOUT))
    assert len(responses) == 5
    assert all(response.batch_rows == 20 and response.ByteSize() < 2 * MIB + 4096 for response in responses)
    batch = one(iter(responses))
    assert torch.equal(batch["image"], sent["image"])
    assert batch["number"].tolist() == batch["index"].tolist() == list(range(20))


def test_a_row_above_the_size_of_a_block_is_a_block_alone(client):
    client.create(3)
    client.add({"image": torch.arange(3, dtype=torch.uint8).unsqueeze(1).repeat(1, 5 * MIB)})
    responses = list(client.stub.SampleByIndex(pb.SampleByIndexRequest(table=client.table, index=[2, 0]), timeout=TIMEOUT))
    assert [(response.batch_rows, response.first_row) for response in responses] == [(2, 0), (2, 1)]
    assert one(iter(responses))["image"][:, -1].tolist() == [2, 0]


def test_tables_are_created_listed_reset_rewound_and_dropped(client):
    assert [client.create(4), client.create(4)] == [True, False]
    client.add(transitions(3))
    client.add(transitions(1, 3))
    client.stub.Rewind(pb.RewindRequest(table=client.table, buffer_size=4, size=2, write_count=3), timeout=TIMEOUT)
    assert checked(client.sample_all()) == [1, 2]
    client.stub.Reset(pb.ResetRequest(table=client.table, buffer_size=5), timeout=TIMEOUT)
    described = client.describe()
    assert (described.buffer_size, described.size, described.pointer, described.write_count) == (5, 0, 0, 5)
    names = client.stub.ListTables(pb.ListTablesRequest(), timeout=TIMEOUT).tables
    assert client.table in names
    assert list(names) == sorted(names)
    client.stub.DropTable(pb.DropTableRequest(table=client.table), timeout=TIMEOUT)
    assert client.table not in client.stub.ListTables(pb.ListTablesRequest(), timeout=TIMEOUT).tables


def test_rows_whose_header_leaves_no_room_for_the_extra_fields_are_refused(client):
    client.create(2)
    fields = {f"{number}{'x' * 200}": torch.zeros(1, dtype=torch.uint8) for number in range(255)}
    with pytest.raises(grpc.RpcError) as raised:
        client.add(fields)
    assert refusal(raised.value) == ("CodecError", INVALID)
    client.add(dict(itertools.islice(fields.items(), 230)))
    assert len(client.sample_all()) == 232
