"""Numbers at the far ends of 64 bits and texts of every kind, in every field of every call: refused or taken, and the server goes on."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from safetensors.numpy import load, save

from compliance.kinds import leaves_a_checkpoint
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]
NUMBERS = (-(1 << 63), -1, 0, 1, 1 << 31, 1 << 32, 1 << 40, (1 << 61) + 1, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, (1 << 63) - 2, (1 << 63) - 1)
TEXTS = ("", "\n", "a\nlevel=critical event=forged", "\x1b[31m", "\x00", "ä" * 900, "\U0001f600" * 900, "%" * 3000, "../x", "a b=c", "x" * 100_000)
CHANGES = {"Add", "AddBatch", "CreateTable", "DropTable", "Reset", "Rewind", "Checkpoint"}


def block(rows: int = 4) -> bytes:
    return save({"x": np.arange(rows, dtype=np.float32), "done": np.zeros(rows, np.bool_)}, {"batch_shape": f"[{rows}]"})


def good(call: str, table: str) -> dict[str, Any]:
    """The fields of a request that is served."""
    fields = {field.name for field in SERVICE.methods_by_name[call].input_type.fields}
    known = {"table": table, "buffer_size": 8, "batch_size": 2, "index": [0], "credits": 1, "block": block(), "name": "one"}
    sizes = {"size": 1, "write_count": 4} if call == "Rewind" else {}
    return {name: value for name, value in (known | sizes).items() if name in fields}


def odd_requests(call: str, table: str) -> Iterator[Message]:
    """Good requests in which one number or text is odd, or two are."""
    method = SERVICE.methods_by_name[call]
    make = GetMessageClass(method.input_type)
    odd: list[tuple[str, Any]] = []
    for field in method.input_type.fields:
        values: tuple[Any, ...] = NUMBERS if field.type == FieldDescriptor.TYPE_INT64 else TEXTS if field.type == FieldDescriptor.TYPE_STRING else ()
        repeated = not isinstance(getattr(make(), field.name), (int, str, bytes))
        odd += [(field.name, [value] if repeated else value) for value in values]
    yield from (make(**(good(call, table) | {name: value})) for name, value in odd)
    pairs = [pair for pair in itertools.combinations(odd, 2) if pair[0][0] != pair[1][0]]
    yield from (make(**(good(call, table) | dict(pair))) for pair in random.Random(call).sample(pairs, min(80, len(pairs))))


class Server:
    """A server with one table, and what its clients see."""

    def __init__(self, stub: ReplayBufferServiceStub, table: str) -> None:
        self.stub, self.table = stub, table

    def call(self, name: str, request: Message) -> grpc.StatusCode:
        """How a call ends. It has three answers at most."""
        method, act = SERVICE.methods_by_name[name], getattr(self.stub, name)
        code, details = grpc.StatusCode.OK, "none"
        try:
            if not method.server_streaming:
                act(request, timeout=10)
            else:
                answers = act(iter([request]) if method.client_streaming else request, timeout=10)
                collections.deque(itertools.islice(answers, 3), 0)
                answers.cancel()
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        assert details, "the status has lost its text"
        return code

    def fill(self) -> None:
        """Makes the table anew."""
        if self.table in self.stub.ListTables(pb.ListTablesRequest(), timeout=10).tables:
            self.stub.DropTable(pb.DropTableRequest(table=self.table), timeout=10)
        self.stub.CreateTable(pb.CreateTableRequest(table=self.table, buffer_size=8), timeout=10)
        self.insert()

    def insert(self) -> None:
        self.stub.Add(pb.AddRequest(table=self.table, block=block()), timeout=10)

    def seen(self) -> tuple[pb.DescribeResponse, bytes]:
        """The table's state and rows, without the counts of what was drawn and the rates, which change with time."""
        (rows,) = self.stub.SampleAll(pb.SampleAllRequest(table=self.table), timeout=10)
        described = self.stub.Describe(pb.DescribeRequest(table=self.table), timeout=10)
        for count in ("sample_count", "insert_rate", "sample_rate"):
            described.ClearField(count)
        return described, rows.block


@pytest.fixture
def server(stub, table) -> Server:
    return Server(stub, table)


CALLS = [pytest.param(method.name, marks=[leaves_a_checkpoint] if method.name == "Checkpoint" else []) for method in SERVICE.methods]


@pytest.mark.parametrize("call", CALLS)
def test_odd_numbers_and_texts_are_taken_or_refused_and_nothing_else_changes(server, call):
    server.fill()
    before = server.seen()
    for request in odd_requests(call, server.table):
        code = server.call(call, request)
        shown = str(request)[:200]
        assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), shown
        if code is not grpc.StatusCode.OK or call not in CHANGES:
            assert server.seen() == before, shown
            continue
        assert server.table in server.stub.ListTables(pb.ListTablesRequest(), timeout=10).tables or call == "DropTable"
        if call != "DropTable":
            check_that_it_is_of_use(server, shown)
        server.fill()
        before = server.seen()


def check_that_it_is_of_use(server: Server, shown: str) -> None:
    code = server.call("Add", pb.AddRequest(table=server.table, block=block()))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # A capacity for which there is no memory.
        return
    assert code is grpc.StatusCode.OK, shown
    answer = next(server.stub.SampleBatch(pb.SampleBatchRequest(table=server.table, batch_size=2), timeout=10))
    assert set(load(answer.block)) == {"x", "done", "index", "row_id"}, shown


def test_rows_go_on_at_the_last_row_id_of_a_rewind(server):
    """The largest write count that a rewind takes leaves room for all rows that can ever come."""
    for write_count in ((1 << 62) - 1, 1 << 62):
        server.fill()
        server.stub.Reset(pb.ResetRequest(table=server.table), timeout=10)
        server.stub.Rewind(pb.RewindRequest(table=server.table, buffer_size=8, size=0, write_count=write_count), timeout=10)
        for _ in range(5):
            server.insert()
        (answer,) = server.stub.SampleAll(pb.SampleAllRequest(table=server.table), timeout=10)
        assert sorted(load(answer.block)["row_id"].tolist()) == list(range(write_count + 12, write_count + 20))
        assert server.stub.Describe(pb.DescribeRequest(table=server.table), timeout=10).insert_count == 24


def test_resets_of_large_capacities_never_take_the_row_ids_away(server):
    """Each of them makes the ids jump to a multiple of the capacity."""
    server.fill()
    for size in (1 << 62, (1 << 62) - 1, (1 << 61) + 1, (1 << 62) - 3, 8):
        code = server.call("Reset", pb.ResetRequest(table=server.table, buffer_size=size))
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
    server.insert()
    assert server.stub.Describe(pb.DescribeRequest(table=server.table), timeout=10).insert_count == 8


@pytest.mark.parametrize(
    ("capacity", "shape"),
    [
        (1 << 62, (4,)),
        (1 << 61, (4,)),
        ((1 << 60) + 1, (16,)),
        ((1 << 58) + 1, (64,)),
        (1 << 62, ()),
        (1 << 62, (0,)),
        (1 << 62, (0, 1 << 40)),
        (1 << 40, (0, 1 << 47)),
    ],
)
def test_a_capacity_for_which_there_is_no_memory_is_refused_and_leaves_the_table_of_use(server, capacity, shape):
    server.fill()
    server.stub.Reset(pb.ResetRequest(table=server.table, buffer_size=capacity), timeout=10)
    for _ in range(2):
        request = pb.AddRequest(table=server.table, block=save({"x": np.zeros((1, *shape), np.float32)}, {"batch_shape": "[1]"}))
        assert server.call("Add", request) is (grpc.StatusCode.OK if 0 in shape else grpc.StatusCode.RESOURCE_EXHAUSTED)
    server.stub.Reset(pb.ResetRequest(table=server.table, buffer_size=8), timeout=10)
    server.insert()
