"""Single inserts and batches over calls that are held open between them: nothing but their speed may tell."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.errors import EmptyTableError, SchemaError, ServerUnavailableError, StreamLimitError, TableNotFoundError
from tdreplay.rows import given_row, given_rows
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture
def buffer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, timeout=10) as made:
        yield made


def test_each_batch_is_drawn_when_it_is_asked_for(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=1, timeout=10) as buffer:
        for number in range(20):
            buffer.add(rows(1, number)[0])
            assert numbers(buffer.sample_batch(3)) == [number] * 3


def test_sizes_may_change_from_call_to_call(buffer):
    buffer.add_batch(rows(50))
    for size in (4, 4, 4, 7, 4, 4, 7, 7, 7, 1):
        assert len(numbers(buffer.sample_batch(size))) == size


def test_a_refused_row_is_an_error_and_the_next_one_is_stored(buffer):
    buffer.add_batch(rows(2))
    for number in range(2, 6):
        with pytest.raises(SchemaError):
            buffer.add(TensorDict({"other": 1.0}))
        buffer.add(rows(1, number)[0])
    assert numbers(buffer.sample_all()) == list(range(6))


def test_a_table_that_was_dropped_and_made_anew_is_the_new_one(address, buffer):
    buffer.add_batch(rows(5))
    for _ in range(3):
        buffer.sample_batch(4)
    buffer.drop()
    with pytest.raises(TableNotFoundError):
        buffer.sample_batch(4)
    with pytest.raises(TableNotFoundError):
        buffer.add_batch(rows(5))
    with RemoteReplayBuffer(address, table=buffer.table, buffer_size=7):
        with pytest.raises(EmptyTableError):
            buffer.sample_batch(4)
        buffer.add_batch(rows(3, 90))
        assert set(numbers(buffer.sample_batch(4))) <= {90, 91, 92}
        assert numbers(buffer.sample_all()) == [90, 91, 92]


def test_threads_that_share_a_buffer_do_not_mix_their_calls_up(buffer):
    failed = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 25):
                buffer.add(rows(1, number)[0])
                assert len(numbers(buffer.sample_batch(1 + number % 3))) == 1 + number % 3
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert sorted(numbers(buffer.sample_all())) == list(range(100))


@pytest.fixture
def narrow():
    """A server with room for one stream and one standing call."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100, max_workers=4, max_streams=1)) as server:
        yield server.address


def test_where_there_is_no_room_for_standing_calls_all_goes_on_without(narrow):
    buffers = [RemoteReplayBuffer(narrow, timeout=10) for _ in range(5)]
    try:
        for number in range(20):
            buffers[number % 5].add(rows(1, number)[0])
        for number in range(20):
            assert len(numbers(buffers[number % 5].sample_batch(3))) == 3
        assert numbers(buffers[0].sample_all()) == list(range(20))
    finally:
        for buffer in buffers:
            buffer.close()


def test_standing_calls_do_not_take_the_room_of_streams(narrow):
    with RemoteReplayBuffer(narrow, timeout=10) as buffer, RemoteReplayBuffer(narrow, timeout=10) as other:
        for number in range(3):
            buffer.add(rows(1, number)[0])
            other.sample_batch(3)
        for _ in range(5):
            with until_there_is_room(buffer) as batches:
                next(batches)


def until_there_is_room(buffer: RemoteReplayBuffer):
    """A stream, once the server noticed that the one before was closed."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return buffer.stream(4)
        except StreamLimitError:
            assert time.monotonic() < deadline


def test_a_standing_call_beyond_the_room_is_refused(narrow):
    with grpc.insecure_channel(narrow) as channel:
        open_call = channel.stream_stream(
            "/tdreplay.v1.ReplayBufferService/AddBatch",
            request_serializer=pb.AddBatchRequest.SerializeToString,
            response_deserializer=pb.AddBatchResponse.FromString,
        )
        asked = pb.AddBatchRequest(table="default", standing=True, shared_slots=1, slot_bytes=1)
        hold = threading.Event()

        def requests():
            yield asked
            hold.wait(20)

        try:
            held = open_call(requests(), timeout=20)
            next(held)
            refused = open_call(iter([asked]), timeout=20)
            with pytest.raises(grpc.RpcError) as raised:
                next(refused)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        finally:
            hold.set()


def test_a_server_that_stops_ends_the_calls_that_wait_for_their_client():
    server = ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100))
    server.start()
    with RemoteReplayBuffer(server.address, timeout=1) as buffer:
        buffer.add_batch(rows(10))
        for _ in range(3):
            buffer.sample_batch(4)
        writer, batches = buffer.writer(), buffer.stream(4)
        writer.append(rows(1)[0])
        writer.flush()
        next(batches)
        start = time.monotonic()
        server.stop(grace=20)
        assert time.monotonic() - start < 10
        with pytest.raises(ServerUnavailableError):
            list(batches)
        with pytest.raises(ServerUnavailableError):
            append_until_it_fails(writer)
        for call in (lambda: buffer.add(rows(1)[0]), lambda: buffer.sample_batch(4)):
            with pytest.raises(ServerUnavailableError, match=buffer.address):
                call()


def append_until_it_fails(writer) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        writer.append(rows(1)[0])


def test_an_insert_gives_the_row_ids_of_its_rows(buffer):
    assert buffer.insert(given_row(rows(1)[0])).tolist() == [0]
    assert buffer.insert(given_rows(rows(3, 1))).tolist() == [1, 2, 3]


def test_an_insert_of_several_blocks_gives_the_row_ids_of_each_while_others_insert(address, table):
    """The blocks of two writers interleave."""
    with ExitStack() as stack:
        buffers = [stack.enter_context(RemoteReplayBuffer(address, table=table, buffer_size=400, timeout=60)) for _ in range(2)]
        wide = TensorDict({"number": torch.arange(100), "wide": torch.zeros(100, 100_000, dtype=torch.uint8)}, [100])
        with ThreadPoolExecutor(2) as pool:
            given = list(pool.map(lambda buffer: [buffer.insert(given_rows(wide)) for _ in range(2)], buffers))
        ids = np.concatenate([np.stack(inserts) for inserts in given])
        assert sorted(ids.reshape(-1).tolist()) == list(range(400))
        stored = buffers[0].sample_by_index_fields(ids.reshape(-1), ["number"])
        assert stored["number"].reshape(4, 100).tolist() == [list(range(100))] * 4
