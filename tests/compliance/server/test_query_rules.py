"""What a stream may ask for after its first message, and what a query goes on with when its table changes."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from tdreplay.errors import TRAILER
from tdreplay.limits import MAX_HEADER_BYTES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer


def fill(stub: ReplayBufferServiceStub, table: str, **columns: np.ndarray) -> None:
    rows = len(next(iter(columns.values())))
    stub.Add(pb.AddRequest(table=table, block=save(columns, {"batch_shape": f"[{rows}]"})), timeout=10)


@pytest.fixture
def filled(stub, table) -> str:
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=100), timeout=10)
    fill(stub, table, x=np.zeros(10, np.float32))
    return table


class Stream:
    """A call that is held open."""

    def __init__(self, call: Any, query: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(query)
        self._make = type(query)
        self._answers = call(iter(self._requests.get, None), timeout=20)

    def ask(self, **more: Any) -> Any:
        self._requests.put(self._make(**more))
        return next(self._answers)

    def next(self) -> Any:
        return next(self._answers)

    def close(self) -> None:
        self._answers.cancel()
        self._requests.put(None)


def assert_ends(stream: Stream, name: str, words: str, **more: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stream.ask(**more)
    assert dict(raised.value.trailing_metadata())[TRAILER] == name
    assert words in raised.value.details()
    stream.close()


@pytest.mark.parametrize("call", ["Sample", "Epoch"])
def test_slots_that_were_not_lent_cannot_be_released(stub, filled, call):
    make = pb.SampleRequest if call == "Sample" else pb.EpochRequest
    stream = Stream(getattr(stub, call), make(table=filled, batch_size=2, credits=1))
    assert stream.next().batch_rows == 2
    assert_ends(stream, "InvalidArgumentError", "released_slots (0)", credits=0, released_slots=[0])
    assert_ends(Stream(getattr(stub, call), make(table=filled, batch_size=2, released_slots=[0])), "InvalidArgumentError", "released_slots")


def test_a_table_that_was_reset_goes_on_with_rows_of_the_same_schema(stub, filled):
    stream = Stream(stub.Sample, pb.SampleRequest(table=filled, batch_size=2, credits=1))
    assert load(stream.next().block)["x"].tolist() == [0, 0]
    stub.Reset(pb.ResetRequest(table=filled), timeout=10)
    fill(stub, filled, x=np.ones(10, np.float32))
    assert load(stream.ask(credits=1).block)["x"].tolist() == [1, 1]
    stream.close()


@pytest.mark.parametrize("fields", [[], ["x"]])
@pytest.mark.parametrize(
    "columns",
    [{"x": np.zeros(10, np.float64)}, {"x": np.zeros((10, 2), np.float32)}, {"y": np.zeros(10, np.float32)}],
    ids=["dtype", "shape", "name"],
)
def test_a_table_with_another_schema_ends_the_call(stub, filled, columns, fields):
    stream = Stream(stub.Sample, pb.SampleRequest(table=filled, batch_size=2, credits=1, fields=fields))
    stream.next()
    stub.Reset(pb.ResetRequest(table=filled), timeout=10)
    fill(stub, filled, **columns)
    assert_ends(stream, "TableChangedError", "the table was reset", credits=1)


def test_a_table_that_was_dropped_ends_the_call(stub, filled):
    stream = Stream(stub.Sample, pb.SampleRequest(table=filled, batch_size=2, credits=1))
    stream.next()
    stub.DropTable(pb.DropTableRequest(table=filled), timeout=10)
    assert_ends(stream, "TableChangedError", "dropped", credits=1)


def test_single_batches_follow_the_table(address, stub, filled):
    with RemoteReplayBuffer(address, table=filled) as buffer:
        assert "x" in buffer.sample_batch(2)
        stub.Reset(pb.ResetRequest(table=filled), timeout=10)
        fill(stub, filled, y=np.zeros(10, np.float32))
        assert "y" in buffer.sample_batch(2)


def block_of(fields: int, name_length: int) -> bytes:
    return save({f"{n:0{name_length}}": np.zeros(1, np.uint8) for n in range(fields)}, {"batch_shape": "[1]"})


def test_a_block_has_room_for_its_own_header_and_a_schema_for_what_is_sent(stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=10), timeout=10)
    refused, fitting = set(), 0
    for name_length in (85, 90, 100, 115):
        block = block_of(400, name_length)
        header = int.from_bytes(block[:8], "little")
        try:
            stub.Add(pb.AddRequest(table=table, block=block), timeout=10)
        except grpc.RpcError as error:
            refused.add((header <= MAX_HEADER_BYTES, dict(error.trailing_metadata())[TRAILER], "with index and row_id" in error.details()))
        else:
            fitting = header
            assert len(load(next(stub.SampleAll(pb.SampleAllRequest(table=table), timeout=10)).block)) == 402
            stub.Reset(pb.ResetRequest(table=table), timeout=10)
    assert fitting > 0.8 * MAX_HEADER_BYTES
    assert refused == {(True, "CodecError", True), (False, "CodecError", False)}


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb", "é", "x" * 65, "x" * 100_000], ids=repr)
def test_a_name_that_breaks_the_rule_is_refused_with_a_short_text_and_not_as_a_bug(stub, name):
    with pytest.raises(grpc.RpcError) as raised:
        stub.CreateTable(pb.CreateTableRequest(table=name, buffer_size=1), timeout=10)
    assert dict(raised.value.trailing_metadata())[TRAILER] == "InvalidArgumentError"
    assert len(raised.value.details()) < 300
    for look_up in (
        lambda: stub.Describe(pb.DescribeRequest(table=name), timeout=10),
        lambda: stub.DropTable(pb.DropTableRequest(table=name), timeout=10),
        lambda: next(stub.SampleBatch(pb.SampleBatchRequest(table=name, batch_size=1), timeout=10)),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            look_up()
        assert dict(raised.value.trailing_metadata())[TRAILER] in ("InvalidArgumentError", "TableNotFoundError")
        assert len(raised.value.details()) <= 1000
