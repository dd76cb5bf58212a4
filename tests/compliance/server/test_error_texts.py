"""What a server says of requests that it refuses is for clients in any language: it names no method and no class of Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub as Stub

BLOCKS = Path(__file__).parents[2] / "golden" / "blocks"
PYTHON = re.compile(r"\b(add_batch|append|extend|sample_\w+|TensorDict|None|True|False|load|save|reset\(|state\(|tensor|dict|int64|torch|names =)")


def block(name: str) -> bytes:
    return (BLOCKS / f"{name}.safetensors").read_bytes()


REFUSED: dict[str, Callable[[Stub, str], object]] = {
    "no-table": lambda stub, _: stub.Describe(pb.DescribeRequest(table="none")),
    "name": lambda stub, _: stub.CreateTable(pb.CreateTableRequest(table="a/b", buffer_size=1)),
    "capacity": lambda stub, _: stub.CreateTable(pb.CreateTableRequest(table="other", buffer_size=0)),
    "exists": lambda stub, table: stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=11)),
    "device": lambda stub, _: stub.CreateTable(pb.CreateTableRequest(table="other", buffer_size=1, storing_device="tape")),
    "no-block": lambda stub, table: stub.Add(pb.AddRequest(table=table)),
    "no-rows": lambda stub, table: stub.Add(pb.AddRequest(table=table, block=block("invalid/no-rows"))),
    "another-schema": lambda stub, table: stub.Add(pb.AddRequest(table=table, block=block("valid/bool"))),
    "reserved-name": lambda stub, table: stub.Add(pb.AddRequest(table=table, block=block("invalid/index-of-another-dtype"))),
    "writer": lambda stub, table: stub.Add(pb.AddRequest(table=table, block=block("valid/one-row"), writer_id="\n", sequence=1)),
    "sequence": lambda stub, table: stub.Add(pb.AddRequest(table=table, block=block("valid/one-row"), sequence=1)),
    "batch-size": lambda stub, table: list(stub.SampleBatch(pb.SampleBatchRequest(table=table, batch_size=0))),
    "field": lambda stub, table: list(stub.SampleBatch(pb.SampleBatchRequest(table=table, batch_size=1, fields=["nope"]))),
    "field-twice": lambda stub, table: list(stub.SampleBatch(pb.SampleBatchRequest(table=table, batch_size=1, fields=["x", "x"]))),
    "slot": lambda stub, table: list(stub.SampleByIndex(pb.SampleByIndexRequest(table=table, index=[7]))),
    "no-slots": lambda stub, table: list(stub.SampleByIndex(pb.SampleByIndexRequest(table=table))),
    "rewind": lambda stub, table: stub.Rewind(pb.RewindRequest(table=table, buffer_size=10, size=1, write_count=50)),
    "rewind-capacity": lambda stub, table: stub.Rewind(pb.RewindRequest(table=table, buffer_size=11, size=1, write_count=1)),
    "checkpoint": lambda stub, table: list(stub.Checkpoint(pb.CheckpointRequest(table=table, name="a b"))),
    "no-query": lambda stub, _: list(stub.Sample(iter([]))),
    "credits": lambda stub, table: list(stub.Sample(iter([pb.SampleRequest(table=table, batch_size=1, credits=-1)]))),
    "released": lambda stub, table: list(stub.Sample(iter([pb.SampleRequest(table=table, batch_size=1), pb.SampleRequest(released_slots=[3])]))),
    "epochs": lambda stub, table: list(stub.Epoch(iter([pb.EpochRequest(table=table, batch_size=1, n_epochs=-1)]))),
    "slot-of-no-offer": lambda stub, table: list(stub.AddBatch(iter([pb.AddBatchRequest(table=table, slot=3)]))),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_has_no_words_of_python(kind, stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=10), timeout=20)
    stub.Add(pb.AddRequest(table=table, block=block("valid/one-row")), timeout=20)
    with pytest.raises(grpc.RpcError) as raised:
        REFUSED[kind](stub, table)
    assert not PYTHON.search(raised.value.details().replace(table, "")), raised.value.details()
