"""What a request may cost is bounded by what it says and by what it holds, before anything is taken for it."""

from __future__ import annotations

import queue
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from tdreplay.errors import TRAILER, InvalidArgumentError
from tdreplay.limits import MAX_BATCH_SIZE, MAX_FIELD_NAMES, MAX_HEAD_BYTES, MOST_SHARED_BYTES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.transport.shared_memory import TOTAL_SHARED_BYTES, Segments

LARGE = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@pytest.fixture
def stub(address) -> Iterator[ReplayBufferServiceStub]:
    with grpc.insecure_channel(address, options=LARGE) as channel:
        yield ReplayBufferServiceStub(channel)


@pytest.fixture
def rows_of_no_bytes(stub, table) -> str:
    """A table with 2^20 rows whose one field has no bytes, of a capacity that no memory could hold."""
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=1 << 62), timeout=10)
    add(stub, table, 1 << 20)
    return table


def add(stub: ReplayBufferServiceStub, table: str, rows: int) -> None:
    stub.Add(pb.AddRequest(table=table, block=save({"z": np.empty((rows, 0), np.float32)}, {"batch_shape": f"[{rows}]"})), timeout=10)


def grown_mib(act: Callable[[], object]) -> float:
    """By how much the peak of this process's memory, with the server in it, grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    act()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def answers(call: Callable[..., Iterator[Any]], query: Any) -> list[Any]:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(query)
    requests.put(None)
    return list(call(iter(requests.get, None), timeout=60))


def refused(act: Callable[[], object], name: str = "InvalidArgumentError") -> str:
    with pytest.raises(grpc.RpcError) as raised:
        act()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(raised.value.trailing_metadata())[TRAILER] == name
    return str(raised.value.details())


# -- rows without bytes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [256, 1 << 62, (1 << 63) - 1])
@pytest.mark.parametrize("call", ["Sample", "Epoch"])
def test_batches_of_no_bytes_cost_their_slots_and_come_one_in_a_message(stub, rows_of_no_bytes, call, most):
    make = pb.SampleRequest if call == "Sample" else pb.EpochRequest
    more = {} if call == "Sample" else {"n_epochs": 1 << 62}
    query = make(table=rows_of_no_bytes, batch_size=1 << 20, fields=["z"], credits=8, batches_per_message=most, **more)
    found: list[Any] = []
    assert grown_mib(lambda: found.extend(answers(getattr(stub, call), query))) < 200
    assert [load(answer.block)["z"].shape for answer in found] == [(1 << 20, 0)] * 8


def test_all_rows_of_no_bytes_come_in_blocks_of_at_most_a_batch(stub, rows_of_no_bytes):
    for _ in range(3):
        add(stub, rows_of_no_bytes, 1 << 20)
    found = list(stub.SampleAll(pb.SampleAllRequest(table=rows_of_no_bytes, fields=["z"]), timeout=30))
    assert [(answer.first_row, len(load(answer.block)["z"])) for answer in found] == [(k << 20, 1 << 20) for k in range(4)]


def test_small_batches_of_no_bytes_share_messages_up_to_the_rows_of_one_batch(stub, rows_of_no_bytes):
    query = pb.SampleRequest(table=rows_of_no_bytes, batch_size=1 << 18, fields=["z"], credits=8, batches_per_message=100)
    assert [len(load(answer.block)["z"]) for answer in answers(stub.Sample, query)] == [1 << 20, 1 << 20]


def test_a_random_order_of_many_rows_takes_no_list_of_them(stub, rows_of_no_bytes):
    for _ in range(127):
        add(stub, rows_of_no_bytes, 1 << 20)
    query = pb.EpochRequest(table=rows_of_no_bytes, batch_size=1000, fields=["index"], credits=3, shuffle=True, seed=1)
    found: list[Any] = []
    assert grown_mib(lambda: found.extend(answers(stub.Epoch, query))) < 200  # A list would take a gigabyte.
    index = np.concatenate([load(answer.block)["index"] for answer in found])
    assert len(set(index.tolist())) == 3000
    assert index.std() > (128 << 20) / 5


# -- messages ---------------------------------------------------------------------------------------------------------------------------------


def test_compressed_messages_are_refused_before_they_are_unpacked(address, stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=10), timeout=10)
    with grpc.insecure_channel(address, options=LARGE, compression=grpc.Compression.Gzip) as channel:
        packing = ReplayBufferServiceStub(channel)

        def send() -> None:
            for _ in range(4):
                with pytest.raises(grpc.RpcError) as raised:
                    packing.Add(pb.AddRequest(table=table, block=bytes(60 << 20)), timeout=20)
                assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED

        assert grown_mib(send) < 300  # This process made the messages.
    assert stub.Describe(pb.DescribeRequest(table=table), timeout=10).size == 0


@pytest.mark.parametrize(
    "message",
    [
        pb.SampleBatchRequest(batch_size=1, fields=["x" * 100] * 2000),
        pb.SampleAllRequest(fields=["x"] * 100_000),
        pb.SampleByIndexRequest(index=[0], fields=["x"] * 500_000),
        pb.DescribeRequest(table="t" * (1 << 20)),
        pb.CreateTableRequest(table="t", buffer_size=1, storing_device="c" * (1 << 20)),
        pb.AddRequest(writer_id="w" * (1 << 20)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_parsed_of_a_message_is_bounded_in_bytes(stub, message):
    call = type(message).__name__.removesuffix("Request")
    assert refused(lambda: list(getattr(stub, call)(message, timeout=10)), "CodecError" if call == "SampleByIndex" else "InvalidArgumentError")


def test_the_bound_is_named(stub):
    text = refused(lambda: stub.Describe(pb.DescribeRequest(table="t" * MAX_HEAD_BYTES), timeout=10))
    assert f"DescribeRequest ({MAX_HEAD_BYTES + 4} bytes" in text
    assert f"at most {MAX_HEAD_BYTES} bytes" in text


def test_as_many_slots_as_there_may_be_fit(stub, rows_of_no_bytes):
    query = pb.SampleByIndexRequest(table=rows_of_no_bytes, index=range(MAX_BATCH_SIZE), fields=["z"])
    assert sum(len(load(answer.block)["z"]) for answer in stub.SampleByIndex(query, timeout=30)) == MAX_BATCH_SIZE
    query.index.append(0)
    assert f"the number of slots in index ({MAX_BATCH_SIZE + 1})" in refused(lambda: list(stub.SampleByIndex(query, timeout=30)))


def test_so_many_names_are_too_many(stub, rows_of_no_bytes):
    query = pb.SampleAllRequest(table=rows_of_no_bytes, fields=["z"] * (MAX_FIELD_NAMES + 1))
    assert f"the number of names in fields ({MAX_FIELD_NAMES + 1})" in refused(lambda: list(stub.SampleAll(query, timeout=10)))


# -- shared memory ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharing() -> Iterator[ReplayBufferServiceStub]:
    """A server of its own: its shared memory is nobody else's."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server, grpc.insecure_channel(server.address) as channel:
        yield ReplayBufferServiceStub(channel)


class Offered:
    """An AddBatch call that asked for shared memory, and is held open."""

    def __init__(self, stub: ReplayBufferServiceStub, slots: int, slot_bytes: int) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(pb.AddBatchRequest(table="default", shared_slots=slots, slot_bytes=slot_bytes))
        self._call = stub.AddBatch(iter(self._requests.get, None), timeout=60)
        self.offer = next(self._call).shared_memory

    def close(self) -> None:
        self._requests.put(None)
        assert list(self._call) == []


def test_the_shared_memory_of_all_calls_is_bounded_and_comes_back(sharing):
    most = TOTAL_SHARED_BYTES // MOST_SHARED_BYTES
    calls = [Offered(sharing, 1000, 1 << 20) for _ in range(most + 2)]
    assert [bool(call.offer.path) for call in calls] == [True] * most + [False] * 2
    assert all(call.offer.slots * call.offer.slot_bytes <= MOST_SHARED_BYTES for call in calls)
    calls.pop(0).close()
    calls.append(Offered(sharing, 1, 1 << 20))
    assert calls[-1].offer.path
    for call in calls:
        call.close()


@pytest.mark.parametrize(("slots", "slot_bytes"), [((1 << 63) - 1, (1 << 63) - 1), (1, (1 << 63) - 1), ((1 << 63) - 1, 0), (1, 1)])
def test_slots_that_cannot_be_are_not_offered(sharing, slots, slot_bytes):
    call = Offered(sharing, slots, slot_bytes)
    assert not call.offer.path
    call.close()


def test_negative_slots_are_refused(sharing):
    request = pb.AddBatchRequest(table="default", shared_slots=-1, slot_bytes=1 << 20)
    assert "shared_slots (-1)" in refused(lambda: list(sharing.AddBatch(iter([request]), timeout=10)))


def test_slots_that_two_threads_lend_and_release_are_lent_once():
    slots, rounds, together = Segments(4, 1 << 12, None), 300, threading.Barrier(2)
    refusals: list[int] = []

    def release_the_same() -> None:
        for _ in range(rounds):
            together.wait(10)
            try:
                slots.release([lent[0][0]])
            except InvalidArgumentError:
                refusals.append(1)
            together.wait(10)

    lent = [slots.lend(1)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        other = threading.Thread(target=release_the_same)
        other.start()
        for _ in range(rounds):
            together.wait(10)
            try:
                slots.release([lent[0][0]])
            except InvalidArgumentError:
                refusals.append(1)
            together.wait(10)
            lent[0] = slots.lend(1)
        other.join(10)
    finally:
        sys.setswitchinterval(interval)
    assert len(refusals) == rounds
    taken = [slots.lend(1) for _ in range(4)]
    assert [one is None for one in taken].count(True) == 1
    slots.close()
