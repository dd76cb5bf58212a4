"""Numbered blocks are stored once, however often, over whatever call and to whatever process they are sent."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from tdreplay.errors import TRAILER
from tdreplay.insert_id import InsertId
from tdreplay.limits import SEQUENCE_WINDOW
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import restore
from tdreplay_server.durability.ledger import MAX_WRITERS, InsertKey, Ledger, WrittenInsert
from tdreplay_server.storage.ring import Ring


def block(first: int, rows: int = 3) -> bytes:
    number = np.arange(first, first + rows)
    return save({"n": number, "x": number.astype(np.float32)}, {"batch_shape": f"[{rows}]"})


class Client:
    """The generated stub, and a table of its own."""

    def __init__(self, address: str, table: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = ReplayBufferServiceStub(self.channel)
        self.address, self.table = address, table
        self.stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=1000), timeout=10)

    def add(self, sequence: int, data: bytes, writer_id: str = "w") -> pb.AddResponse:
        return self.stub.Add(pb.AddRequest(table=self.table, writer_id=writer_id, sequence=sequence, block=data), timeout=10)

    def add_batches(self, *numbered: tuple[int, bytes], writer_id: str = "w") -> list[pb.AddBatchResponse]:
        requests = [pb.AddBatchRequest(table=self.table, writer_id=writer_id, sequence=sequence, block=data) for sequence, data in numbered]
        return list(self.stub.AddBatch(iter(requests), timeout=10))

    def stored(self) -> list[int]:
        with RemoteReplayBuffer(self.address, table=self.table) as buffer:
            return buffer.sample_all()["n"].tolist()


@pytest.fixture
def client(address: str, table: str) -> Iterator[Client]:
    made = Client(address, table)
    yield made
    made.channel.close()


def assert_refused(call, name: str, status: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.RpcError, match=words) as raised:
        call()
    assert raised.value.code() is status
    assert dict(raised.value.trailing_metadata())[TRAILER] == name


def test_a_block_that_is_sent_again_is_acknowledged_with_its_rows_and_stored_once(client):
    first = client.add(1, block(0))
    second = client.add(2, block(3))
    assert (first.first_row_id, first.rows, first.already_stored) == (0, 3, False)
    again = client.add(1, block(0))
    assert (again.first_row_id, again.rows, again.already_stored) == (0, 3, True)
    (over_a_stream, new) = client.add_batches((2, block(3)), (3, block(6)))
    assert (over_a_stream.first_row_id, over_a_stream.already_stored) == (second.first_row_id, True)
    assert (new.first_row_id, new.already_stored) == (6, False)
    assert client.stored() == list(range(9))


def test_the_same_rows_in_another_layout_are_the_same_block(client):
    number = np.arange(3)
    client.add(1, save({"n": number, "x": number.astype(np.float32)}, {"batch_shape": "[3]"}))
    other = save({"x": number.astype(np.float32), "n": number}, {"batch_shape": "[3]", "note": "another header"})
    assert other != block(0)
    assert client.add(1, other).already_stored


def test_a_number_that_stands_for_other_rows_is_refused(client):
    client.add(1, block(0))
    assert_refused(lambda: client.add(1, block(1)), "SequenceError", grpc.StatusCode.FAILED_PRECONDITION, "sequence 1 of writer 'w'")
    assert_refused(lambda: client.add(1, block(0, 2)), "SequenceError", grpc.StatusCode.FAILED_PRECONDITION, "other rows")
    assert client.stored() == [0, 1, 2]


def test_numbers_need_not_come_in_order_but_in_the_window(client):
    client.add(SEQUENCE_WINDOW, block(0))
    assert not client.add(1, block(3)).already_stored
    client.add(SEQUENCE_WINDOW + 1, block(6))
    assert client.add(SEQUENCE_WINDOW, block(0)).already_stored
    assert_refused(lambda: client.add(1, block(3)), "SequenceError", grpc.StatusCode.FAILED_PRECONDITION, "must be above 1")
    assert client.stored() == list(range(9))


def test_writers_do_not_know_of_each_other(client):
    client.add(1, block(0), "a")
    assert not client.add(1, block(0), "b").already_stored
    assert client.stored() == [0, 1, 2, 0, 1, 2]


def test_a_block_without_a_number_is_stored_as_often_as_it_comes(client):
    for _ in range(2):
        assert not client.stub.Add(pb.AddRequest(table=client.table, block=block(0)), timeout=10).already_stored
    assert client.stored() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("writer_id", "sequence", "words"),
    [
        ("w", 0, "sequence"),
        ("w", -1, "sequence"),
        ("", 1, "without a writer_id"),
        ("x" * 65, 1, "1 to 64"),
        ("ä", 1, "ASCII"),
        ("a\n", 1, "printable"),
    ],
)
def test_a_bad_number_is_refused(client, writer_id, sequence, words):
    assert_refused(lambda: client.add(sequence, block(0), writer_id), "InvalidArgumentError", grpc.StatusCode.INVALID_ARGUMENT, words)


def test_a_refused_block_does_not_use_its_number_up(client):
    client.add(1, block(0))
    bad = save({"n": np.arange(3)}, {"batch_shape": "[3]"})
    assert_refused(lambda: client.add(2, bad), "SchemaError", grpc.StatusCode.INVALID_ARGUMENT, "missing")
    assert not client.add(2, block(3)).already_stored


def test_what_was_acknowledged_is_known_after_a_restart_a_reset_and_a_restore(tmp_path: Path):
    config = ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "data")
    with ReplayServer(config) as server:
        client = Client(server.address, "t")
        answer = client.add(1, block(0))
        assert answer.durability == pb.DURABILITY_PROCESS
        client.stub.Reset(pb.ResetRequest(table="t"), timeout=10)
        assert client.add(1, block(0)).already_stored
        client.channel.close()
    with ReplayServer(config) as server:
        client = Client(server.address, "t")
        assert client.add(1, block(0)).already_stored
        (made,) = [message for message in client.stub.Checkpoint(pb.CheckpointRequest(table="t", name="one"), timeout=10) if message.path]
        client.channel.close()
    restore(Path(made.path), tmp_path / "restored", "t")
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "restored")) as server:
        client = Client(server.address, "t")
        assert client.add(1, block(0)).already_stored
        assert not client.add(2, block(3)).already_stored
        client.channel.close()


def test_writers_that_were_silent_longest_are_forgotten_first():
    ledger, ids = Ledger(), itertools.count(1)
    for writer in range(MAX_WRITERS + 10):
        ledger.commit(Ring(10), [WrittenInsert(next(ids), 1, InsertKey(InsertId(f"w{writer}", 1), 7))])
        ledger.commit(Ring(10), [WrittenInsert(next(ids), 1, InsertKey(InsertId("w0", writer + 2), 7))])
    assert ledger.find(InsertKey(InsertId("w0", MAX_WRITERS + 11), 7)) is not None
    assert ledger.find(InsertKey(InsertId("w1", 1), 7)) is None
    assert len({writer for writer, *_ in ledger.acknowledged()}) <= MAX_WRITERS


def test_blocks_that_were_refused_evict_no_writer(client):
    client.add(1, block(0), "honest")
    refused = save({"other": np.zeros(1, np.float32)}, {"batch_shape": "[1]"})
    for writer in range(MAX_WRITERS + 100):
        with pytest.raises(grpc.RpcError, match="field"):
            client.add(1, refused, f"stranger-{writer}")
    assert client.add(1, block(0), "honest").already_stored
    assert client.stored() == [0, 1, 2]


def test_a_number_that_is_looked_up_makes_no_writer_known_and_costs_no_memory():
    ledger = Ledger()
    ledger.commit(Ring(10), [WrittenInsert(0, 1, InsertKey(InsertId("honest", 1), 7))])
    tracemalloc.start()
    try:
        for writer in range(MAX_WRITERS + 100):
            assert ledger.find(InsertKey(InsertId(f"stranger-{writer}", 1), 7)) is None
        assert tracemalloc.get_traced_memory()[0] < 64 << 10
    finally:
        tracemalloc.stop()
    assert [writer for writer, *_ in ledger.acknowledged()] == ["honest"]
    assert ledger.find(InsertKey(InsertId("honest", 1), 7)) is not None
