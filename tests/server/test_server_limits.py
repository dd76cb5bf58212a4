"""Each limit is enforced, and says which it is: over the wire as a standard detail, and to a client as an attribute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest
import torch
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import save
from tensordict import TensorDict

from tdreplay.errors import MessageTooLargeError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

SMALL = ServerConfig(
    address="127.0.0.1:0",
    buffer_size=100,
    max_workers=32,
    max_streams=8,
    max_streams_per_client=2,
    max_calls_per_client=4,
    max_tables=1,
    max_message_bytes=4 << 20,
    max_bytes_in_flight=8 << 20,
    max_header_bytes=1024,
    max_metadata_bytes=4096,
    max_batch_rows=10,
)


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer(SMALL) as server:
        with grpc.insecure_channel(server.address) as channel:
            for start in range(0, 100, 10):
                ReplayBufferServiceStub(channel).Add(pb.AddRequest(table="default", block=block(10, start)), timeout=20)
        yield server


@pytest.fixture
def stub(server) -> Iterator[ReplayBufferServiceStub]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield ReplayBufferServiceStub(channel)


def block(count: int, start: int = 0) -> bytes:
    return save({"number": torch.arange(start, start + count)}, {"batch_shape": f"[{count}]"})


def refusal(call: Callable[[], object]) -> tuple[str, bool]:
    """The limit that a refusal names, and whether waiting helps."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, raised.value.details()
    details = dict(raised.value.trailing_metadata()).get("grpc-status-details-bin", b"")
    info, retry, found = ErrorInfo(), RetryInfo(), Status.FromString(details).details
    assert any(detail.Unpack(info) for detail in found), raised.value.details()
    return info.metadata["limit"], any(detail.Unpack(retry) for detail in found)


def wide_block() -> bytes:
    return save({f"field{number}": torch.zeros(1, 1) for number in range(40)}, {"batch_shape": "[1]"})


@pytest.mark.parametrize(
    ("limit", "call"),
    [
        ("max_batch_rows", lambda stub: list(stub.SampleBatch(pb.SampleBatchRequest(table="default", batch_size=11), timeout=20))),
        ("max_batch_rows", lambda stub: list(stub.Sample(iter([pb.SampleRequest(table="default", batch_size=11)]), timeout=20))),
        ("max_batch_rows", lambda stub: list(stub.Epoch(iter([pb.EpochRequest(table="default", batch_size=11)]), timeout=20))),
        ("max_batch_rows", lambda stub: list(stub.SampleByIndex(pb.SampleByIndexRequest(table="default", index=range(11)), timeout=20))),
        ("max_batch_rows", lambda stub: stub.Add(pb.AddRequest(table="default", block=block(11)), timeout=20)),
        ("max_header_bytes", lambda stub: stub.Add(pb.AddRequest(table="default", block=wide_block()), timeout=20)),
        ("max_tables", lambda stub: stub.CreateTable(pb.CreateTableRequest(table="more", buffer_size=1), timeout=20)),
    ],
)
def test_what_is_too_much_in_one_call_will_be_so_next_time(stub, limit, call):
    assert refusal(lambda: call(stub)) == (limit, False)


def test_grpc_refuses_messages_and_metadata_that_are_too_large(stub):
    for call in (
        lambda: stub.Add(pb.AddRequest(table="default", block=bytes(5 << 20)), timeout=20),
        lambda: stub.Add(pb.AddRequest(table="default", block=block(1)), timeout=20, metadata=[("x", "y" * 5000)]),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_raises_the_error_of_a_message_that_grpc_refused():
    config = ServerConfig(address="127.0.0.1:0", max_message_bytes=4 << 20)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, timeout=20, transport="grpc") as buffer:
        with pytest.raises(MessageTooLargeError) as raised:
            buffer.add(TensorDict({"large": torch.zeros(2 << 20)}, []))
    assert (raised.value.limit, raised.value.retry_after) == ("max_message_bytes", None)


def opened(stack: ExitStack, stub: ReplayBufferServiceStub, count: int) -> None:
    """Streams that are open and idle, until the stack is left."""
    for _ in range(count):
        call = stub.Sample(_held(pb.SampleRequest(table="default", batch_size=2, credits=1)), timeout=60)
        stack.callback(call.cancel)
        next(call)


def _held(first: pb.SampleRequest) -> Iterator[pb.SampleRequest]:
    yield first
    time.sleep(60)


def test_one_client_has_so_many_streams_and_calls(server, stub):
    with ExitStack() as stack:
        opened(stack, stub, 2)
        assert refusal(lambda: opened(stack, stub, 1)) == ("max_streams_per_client", True)
        said = {limit.name: limit for limit in stub.ServerStatus(pb.ServerStatusRequest(), timeout=20).limits}
        assert (said["max_streams_per_client"].used, said["max_streams"].used) == (2, 2)
        assert said["max_streams_per_client"].refused >= 1
    deadline = time.monotonic() + 20
    while {limit.name: limit for limit in stub.ServerStatus(pb.ServerStatusRequest(), timeout=20).limits}["max_streams_per_client"].used:
        assert time.monotonic() < deadline


def test_looks_are_answered_where_all_workers_and_streams_are_taken():
    """Calls that have just begun take all the room there is."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10, max_workers=2, max_streams=1)) as server, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        other = stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))
        stub = ReplayBufferServiceStub(other)
        for _ in range(300):
            stack.callback(channel.stream_stream("/tdreplay.v1.ReplayBufferService/Reset")(_nothing()).cancel)
        for _ in range(20):
            assert stub.Describe(pb.DescribeRequest(table="default"), timeout=5).buffer_size == 10
            assert list(stub.ListTables(pb.ListTablesRequest(), timeout=5).tables) == ["default"]
            assert {limit.name: limit for limit in stub.ServerStatus(pb.ServerStatusRequest(), timeout=5).limits}["max_workers"].limit == 2
            assert health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1


def _nothing() -> Iterator[bytes]:
    time.sleep(60)
    yield b""


READERS = 128


def test_readers_that_stop_reading_stop_nobody_else():
    """128 readers ask for 8 MiB each and take nothing. Bytes are short: those that stand still make room for those that go on."""
    config = ServerConfig(address="127.0.0.1:0", buffer_size=8, max_bytes_in_flight=64 << 20)
    with ReplayServer(config) as server, ExitStack() as stack:
        buffer = stack.enter_context(RemoteReplayBuffer(server.address, timeout=30, transport="grpc"))
        buffer.add_batch(TensorDict({"frame": torch.zeros(8, 1 << 20, dtype=torch.uint8)}, [8]))
        for _ in range(READERS):
            channel = stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))
            call = channel.stream_stream("/tdreplay.v1.ReplayBufferService/Sample")(
                iter([pb.SampleRequest(table="default", batch_size=64, credits=1000).SerializeToString()])
            )
            stack.callback(call.cancel)
        writer = stack.enter_context(RemoteReplayBuffer(server.address, timeout=30))
        for _ in range(5):
            writer.add_batch(TensorDict({"frame": torch.zeros(4, 1 << 20, dtype=torch.uint8)}, [4]))
            assert len(buffer.sample_batch(4)) == 4
            assert buffer.size == 8
        limits = {limit.name: limit for limit in RemoteReplayBuffer.server_status(server.address).limits}
        assert limits["max_bytes_in_flight"].used <= 64 << 20


def test_the_largest_message_fits_into_the_bytes_in_flight():
    with pytest.raises(ValueError, match="max_bytes_in_flight"):
        ServerConfig(max_bytes_in_flight=1 << 20)
