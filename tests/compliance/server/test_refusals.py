"""A refused call says its status, its error and the rule, and changes nothing."""

from __future__ import annotations

import grpc
import pytest
import torch
from safetensors.torch import save

from compliance.server.stock_client import GOOD, INVALID, MIB, TIMEOUT, answers, block, checked, refusal, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
WIDE = block(transitions(2) | {"obs": torch.zeros(2, 3)})
REFUSED = {
    "another dtype": ("Add", {"block": block(transitions(2) | {"done": torch.zeros(2)})}, "SchemaError", INVALID, "field 'done': expected BOOL"),
    "another shape": ("Add", {"block": WIDE}, "SchemaError", INVALID, r"field 'obs': expected F32\[2\] in every row, got F32\[3\]"),
    "an extra field": ("Add", {"block": block(transitions(2) | {"x": torch.zeros(2)})}, "SchemaError", INVALID, "'x': expected none"),
    "a missing field": ("Add", {"block": block({"obs": torch.zeros(2, 2)})}, "SchemaError", INVALID, "'done': expected BOOL.*missing"),
    "a reserved field": ("Add", {"block": block({"index": torch.zeros(2)})}, "SchemaError", INVALID, "'index' is reserved"),
    "no row": ("Add", {"block": block({"obs": torch.zeros(0, 2)}, (0,))}, "InvalidArgumentError", INVALID, r"batch_shape \(\[0\]\)"),
    "too many rows": ("Add", {"block": block({"x": torch.zeros((1 << 20) + 1, 0)})}, "InvalidArgumentError", INVALID, "1 to 1048576 rows"),
    "a BOOL of 2": ("Add", {"block": GOOD[:-1] + b"\x02"}, "CodecError", INVALID, "'done': a BOOL must be 0 or 1, and one is 2"),
    "no block": ("Add", {}, "CodecError", INVALID, "not a block: 0 bytes"),
    "no batch shape": ("Add", {"block": save(transitions(2))}, "CodecError", INVALID, "batch_shape"),
    "another batch shape": ("Add", {"block": block(transitions(2), (3,))}, "CodecError", INVALID, r"must start with the batch shape \[3\]"),
    "a block cut off": ("Add", {"block": GOOD[:-1]}, "CodecError", INVALID, "bytes of data"),
    "a first block cut off": ("AddBatch", {"block": GOOD[:-1]}, "CodecError", INVALID, "bytes of data"),
    "batch_size 0": ("SampleBatch", {}, "InvalidArgumentError", INVALID, r"batch_size \(0\) must be a whole number from 1 to 1048576"),
    "a large batch_size": ("Sample", {"batch_size": (1 << 20) + 1, "credits": 1}, "InvalidArgumentError", INVALID, r"\(1048577\) must be"),
    "negative credits": ("Sample", {"batch_size": 1, "credits": -1}, "InvalidArgumentError", INVALID, r"credits \(-1\)"),
    "an unknown field": ("SampleBatch", {"batch_size": 1, "fields": ["nope"]}, "FieldNotFoundError", INVALID, "'nope' is not a field"),
    "a field twice": ("SampleAll", {"fields": ["obs", "obs"]}, "FieldNotFoundError", INVALID, "each one once"),
    "no slot": ("SampleByIndex", {}, "InvalidArgumentError", INVALID, "from 1 to 1048576"),
    "an empty slot": ("SampleByIndex", {"index": [1, 2]}, "SlotIndexError", grpc.StatusCode.OUT_OF_RANGE, "index 2 holds no row"),
    "a negative slot": ("SampleByIndex", {"index": [-1]}, "SlotIndexError", grpc.StatusCode.OUT_OF_RANGE, "index -1 holds no row"),
    "negative n_epochs": ("Epoch", {"batch_size": 1, "n_epochs": -1}, "InvalidArgumentError", INVALID, r"n_epochs \(-1\)"),
    "a negative seed": ("Epoch", {"batch_size": 1, "seed": -1}, "InvalidArgumentError", INVALID, r"seed \(-1\)"),
    "another capacity": ("CreateTable", {"buffer_size": 5}, "TableExistsError", grpc.StatusCode.ALREADY_EXISTS, "with buffer_size 10, not 5"),
    "an unknown device": ("CreateTable", {"buffer_size": 10, "storing_device": "x"}, "InvalidArgumentError", INVALID, r"storing_device \('x'\)"),
    "a negative capacity": ("Reset", {"buffer_size": -1}, "InvalidArgumentError", INVALID, r"buffer_size \(-1\)"),
    "rows that are gone": ("Rewind", {"buffer_size": 10, "size": 3, "write_count": 3}, "MissingRowsError", PRECONDITION, "must be stored"),
}


@pytest.mark.parametrize(("call", "fields", "name", "status", "rule"), REFUSED.values(), ids=REFUSED)
def test_a_refused_call_says_its_status_its_error_and_the_rule_and_changes_nothing(client, call, fields, name, status, rule):
    client.create(10)
    client.add(transitions(2))
    before = client.describe()
    with pytest.raises(grpc.RpcError, match=rule) as raised:
        answers(client, call, table=client.table, **fields)
    assert refusal(raised.value) == (name, status)
    assert client.describe() == before
    assert checked(client.sample_all()) == [0, 1]


@pytest.mark.parametrize("call", ["SampleBatch", "Sample", "Epoch", "SampleAll"])
def test_reading_an_empty_table_is_refused(client, call):
    client.create(10)
    request = {"table": client.table} if call == "SampleAll" else {"table": client.table, "batch_size": 1}
    if call in ("Sample", "Epoch"):
        request["credits"] = 1
    with pytest.raises(grpc.RpcError, match="the table is empty") as raised:
        answers(client, call, **request)
    assert refusal(raised.value) == ("EmptyTableError", PRECONDITION)


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("Add", {"block": GOOD}),
        ("AddBatch", {"block": GOOD}),
        ("Sample", {"batch_size": 1}),
        ("SampleBatch", {"batch_size": 1}),
        ("SampleByIndex", {"index": [0]}),
        ("SampleAll", {}),
        ("Epoch", {"batch_size": 1}),
        ("Describe", {}),
        ("DropTable", {}),
        ("Reset", {}),
        ("Rewind", {"buffer_size": 1}),
    ],
)
def test_a_call_on_a_table_that_is_not_there_is_refused(client, call, fields):
    with pytest.raises(grpc.RpcError, match=f"table '{client.table}' is not there") as raised:
        answers(client, call, table=client.table, **fields)
    assert refusal(raised.value) == ("TableNotFoundError", grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "\N{SNOWMAN}"])
def test_a_table_name_that_is_none_is_refused(client, name):
    with pytest.raises(grpc.RpcError, match="a name must be 1 to 64 letters") as raised:
        client.stub.CreateTable(pb.CreateTableRequest(table=name, buffer_size=1), timeout=TIMEOUT)
    assert refusal(raised.value) == ("InvalidArgumentError", INVALID)


def test_a_stream_without_a_query_is_refused(client):
    for call in (client.stub.Sample, client.stub.Epoch):
        with pytest.raises(grpc.RpcError, match="ended before its first message") as raised:
            list(call(iter([]), timeout=TIMEOUT))
        assert refusal(raised.value) == ("InvalidArgumentError", INVALID)


def test_bytes_that_are_no_message_are_refused(client):
    with pytest.raises(grpc.RpcError, match="not a AddRequest") as raised:
        client.call("Add")(b"\x7a\x05abc", timeout=TIMEOUT)
    assert refusal(raised.value) == ("CodecError", INVALID)


def test_what_grpc_refuses_itself_has_no_name(client):
    with pytest.raises(grpc.RpcError) as raised:
        client.call("Nope")(b"", timeout=TIMEOUT)
    assert refusal(raised.value) == (None, grpc.StatusCode.UNIMPLEMENTED)
    client.create(10)
    with pytest.raises(grpc.RpcError) as raised:
        client.add({"image": torch.zeros(1, 64 * MIB, dtype=torch.uint8)})
    assert refusal(raised.value) == (None, grpc.StatusCode.RESOURCE_EXHAUSTED)
