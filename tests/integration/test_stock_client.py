"""A client made of the generated code and the safetensors package alone, as docs/protocol.md describes it, against a real server."""

from __future__ import annotations

import itertools
import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import pytest
import torch
from safetensors.torch import load, save
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.fields import DTYPES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

MIB = 1 << 20
TIMEOUT = 30.0
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Client:
    """The stubs, for one table."""

    channel: grpc.Channel
    stub: ReplayBufferServiceStub
    table: str

    def create(self, buffer_size: int) -> bool:
        return self.stub.CreateTable(pb.CreateTableRequest(table=self.table, buffer_size=buffer_size), timeout=TIMEOUT).created

    def add(self, tensors: Tensors, batch_shape: tuple[int, ...] | None = None) -> pb.AddResponse:
        return self.stub.Add(pb.AddRequest(table=self.table, block=block(tensors, batch_shape)), timeout=TIMEOUT)

    def sample_batch(self, batch_size: int, *fields: str) -> Tensors:
        return one(self.stub.SampleBatch(pb.SampleBatchRequest(table=self.table, batch_size=batch_size, fields=fields), timeout=TIMEOUT))

    def sample_by_index(self, index: list[int], *fields: str) -> Tensors:
        return one(self.stub.SampleByIndex(pb.SampleByIndexRequest(table=self.table, index=index, fields=fields), timeout=TIMEOUT))

    def sample_all(self) -> Tensors:
        return one(self.stub.SampleAll(pb.SampleAllRequest(table=self.table), timeout=TIMEOUT))

    def describe(self) -> pb.DescribeResponse:
        return self.stub.Describe(pb.DescribeRequest(table=self.table), timeout=TIMEOUT)

    def call(self, name: str) -> Callable[..., bytes]:
        """A unary call that takes and gives the bytes of messages, as another protobuf library would make them."""
        return self.channel.unary_unary(f"/tdreplay.v1.ReplayBufferService/{name}")


class Requests:
    """The client's side of a stream: an iterator of what is sent, until `half_close`."""

    def __init__(self, *first: object) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        for request in first:
            self.send(request)

    def send(self, request: object) -> None:
        self._queue.put(request)

    def half_close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[object]:
        return iter(self._queue.get, None)


@pytest.fixture
def client(address: str, table: str) -> Iterator[Client]:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", -1)]) as channel:
        yield Client(channel, ReplayBufferServiceStub(channel), table)


def block(tensors: Tensors, batch_shape: tuple[int, ...] | None = None) -> bytes:
    return save(tensors, {"batch_shape": json.dumps(batch_shape or [len(next(iter(tensors.values())))])})


def transitions(n: int, start: int = 0) -> Tensors:
    """n rows, whose fields tell which rows they are."""
    number = torch.arange(start, start + n)
    return {"obs": number.float().unsqueeze(1).repeat(1, 2), "done": number % 2 == 0, "next.obs": number.float() + 1}


def batches(responses: Iterator[pb.SampleResponse]) -> Iterator[Tensors]:
    """Whole batches, put together from their blocks, whose places are checked."""
    parts: list[Tensors] = []
    done = 0
    for response in responses:
        assert response.first_row == done
        part = load(response.block)
        assert len({len(tensor) for tensor in part.values()}) == 1
        parts.append(part)
        done += len(next(iter(part.values())))
        assert done <= response.batch_rows
        if done == response.batch_rows:
            yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            parts, done = [], 0
    assert not parts


def one(responses: Iterator[pb.SampleResponse]) -> Tensors:
    (batch,) = batches(responses)
    return batch


def checked(batch: Tensors) -> list[int]:
    """Which of the `transitions` a batch holds, after checking that each is whole."""
    number = batch["obs"][:, 0].long()
    expected = {"obs": batch["obs"][:, :1].repeat(1, 2), "done": number % 2 == 0, "next.obs": number.float() + 1}
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    return number.tolist()


# -- writing and reading ----------------------------------------------------------------------------------------------------------------------


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


def test_a_cancelled_stream_gives_its_place_back(table):
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0", max_streams=1)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        client = Client(channel, ReplayBufferServiceStub(channel), table)
        client.create(4)
        client.add(transitions(4))
        query = pb.SampleRequest(table=table, batch_size=2, credits=1)
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


# -- errors -----------------------------------------------------------------------------------------------------------------------------------


def refusal(error: grpc.RpcError) -> tuple[str | None, grpc.StatusCode]:
    """The name in the trailing metadata, and the status."""
    return dict(error.trailing_metadata()).get("tdreplay-error"), error.code()


INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
GOOD = block(transitions(2))
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


def answers(client: Client, call: str, **fields: object) -> list[object]:
    """All answers to one request of a call of any arity."""
    request = getattr(pb, f"{call}Request")(**fields)
    method = pb.DESCRIPTOR.services_by_name["ReplayBufferService"].methods_by_name[call]
    answer = getattr(client.stub, call)(iter([request]) if method.client_streaming else request, timeout=TIMEOUT)
    return list(answer) if method.server_streaming else [answer]


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


# -- what protobuf allows ---------------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def text(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize("padding", [0, 1, 13, 300, 70_000])
def test_padding_of_any_length_is_ignored(client, padding):
    client.create(10)
    request = pb.AddRequest(table=client.table, padding=b"\xff" * padding, block=GOOD)
    assert client.stub.Add(request, timeout=TIMEOUT).rows == 2
    (answer,) = client.stub.AddBatch(iter([pb.AddBatchRequest(table=client.table, padding=b"\xff" * padding, block=GOOD)]), timeout=TIMEOUT)
    assert (answer.first_row_id, answer.rows) == (2, 2)
    assert checked(client.sample_all()) == [0, 1, 0, 1]


def test_fields_in_any_order_are_read(client):
    client.create(10)
    message = text(15, GOOD) + text(14, b"abc") + text(1, client.table.encode())
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 2
    assert checked(client.sample_all()) == [0, 1]


def test_of_a_field_that_comes_twice_the_last_one_counts(client):
    client.create(10)
    old = text(1, b"nowhere") + text(15, b"not a block") + text(14, bytes(20))
    message = old + text(15, block(transitions(3))) + text(1, client.table.encode())
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 3
    assert checked(client.sample_all()) == [0, 1, 2]


def test_unknown_fields_are_ignored(client):
    client.create(10)
    unknown = text(99, b"from the future") + varint(98 << 3) + varint(1 << 40) + varint(97 << 3 | 1) + bytes(8) + varint(96 << 3 | 5) + bytes(4)
    message = unknown + text(1, client.table.encode()) + unknown + text(15, GOOD) + unknown
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 2
    describe = client.call("Describe")(text(1, client.table.encode()) + unknown, timeout=TIMEOUT)
    assert pb.DescribeResponse.FromString(describe).size == 2


def test_slots_may_be_packed_or_not(client):
    client.create(10)
    client.add(transitions(8))
    call = client.channel.unary_stream("/tdreplay.v1.ReplayBufferService/SampleByIndex", response_deserializer=pb.SampleByIndexResponse.FromString)
    message = bytes([2 << 3, 5]) + text(1, client.table.encode()) + text(2, bytes([3, 0])) + bytes([2 << 3, 7])
    assert checked(one(call(message, timeout=TIMEOUT))) == [5, 3, 0, 7]


def test_a_stream_may_name_another_table_from_message_to_message(client):
    other = Client(client.channel, client.stub, f"{client.table}-other")
    client.create(10)
    other.create(10)
    requests = [pb.AddBatchRequest(table=name, block=GOOD) for name in (client.table, other.table, "", client.table)]
    assert [answer.first_row_id for answer in client.stub.AddBatch(iter(requests), timeout=TIMEOUT)] == [0, 0, 2, 2]
    assert (client.describe().size, other.describe().size) == (4, 4)


# -- beside tdreplay's own client -------------------------------------------------------------------------------------------------------------


def test_tdreplays_client_reads_what_the_stock_client_wrote(client, address):
    client.create(10)
    n = rows(6)
    client.add({"obs": n["obs"], "action": n["action"], "done": n["done"], "next.obs": n["next", "obs"]})
    with RemoteReplayBuffer(address, table=client.table) as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2, 3, 4, 5]
        assert numbers(buffer.sample_by_index([5, 1])) == [5, 1]
        assert [numbers(batch) for batch in buffer.create_epoch_iterator(4)] == [[0, 1, 2, 3], [4, 5]]
        assert set(numbers(buffer.sample_batch(100))) == set(range(6))


def test_the_stock_client_reads_what_tdreplays_client_wrote(client, address):
    sent = rows(6)
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(sent[:5])
        buffer.add(sent[5])
    batch = client.sample_all()
    assert batch.keys() == {"obs", "action", "done", "next.obs", "index", "row_id"}
    assert all(torch.equal(batch[name], sent[name]) for name in ("obs", "action", "done"))
    assert torch.equal(batch["next.obs"], sent["next", "obs"])


def test_both_clients_write_the_same_table(client, address):
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(TensorDict({"obs": torch.zeros(2, 2), "next": {"obs": torch.ones(2)}}, [2]))
        assert client.add({"next.obs": torch.ones(3), "obs": torch.zeros(3, 2)}).first_row_id == 2
        buffer.add(TensorDict({"next": {"obs": torch.ones(())}, "obs": torch.zeros(2)}, []))
        assert (buffer.size, client.describe().size) == (6, 6)
        assert buffer.sample_all()["row_id"].tolist() == client.sample_all()["row_id"].tolist() == list(range(6))


def test_rows_that_are_batches_go_from_client_to_client(client, address):
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(TensorDict({"obs": torch.arange(30.0).reshape(2, 5, 3)}, [2, 5]))
        client.add({"obs": torch.arange(30.0, 45.0).reshape(1, 5, 3)}, (1, 5))
        batch = buffer.sample_all()
    assert batch.batch_size == torch.Size([3, 5])
    assert torch.equal(batch["obs"], torch.arange(45.0).reshape(3, 5, 3))
    assert torch.equal(client.sample_all()["obs"], batch["obs"])
