"""What programs of any language read of an error: gRPC's rich statuses, as its own library takes them apart."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from conftest import rows
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def server() -> Iterator[ReplayServer]:
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10, max_streams=1)) as running:
        with RemoteReplayBuffer(running.address) as buffer:
            buffer.add_batch(rows(5))
        yield running


@pytest.fixture
def stub(server) -> Iterator[ReplayBufferServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield ReplayBufferServiceStub(channel)


def status_of(error: grpc.RpcError) -> Status:
    status = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return status


def details_of(status: Status, kind: type) -> list[object]:
    """The details of one kind."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize("name", ["nothing", "näme " + "x" * 3000])
def test_an_error_has_its_reason_and_the_requests_id(stub, name):
    with pytest.raises(grpc.RpcError) as raised:
        stub.Describe(pb.DescribeRequest(table=name), timeout=10)
    status = status_of(raised.value)
    (info,), (request,) = details_of(status, error_details_pb2.ErrorInfo), details_of(status, error_details_pb2.RequestInfo)
    assert info.domain == "tdreplay"
    assert info.reason == ("TABLE_NOT_FOUND" if name == "nothing" else "INVALID_ARGUMENT")
    assert len(request.request_id) == 16
    assert details_of(status, error_details_pb2.RetryInfo) == []


def test_a_call_for_which_there_is_no_room_says_which_limit_it_is_and_when_to_come_back(server, stub):
    with RemoteReplayBuffer(server.address) as buffer, buffer.stream(1) as batches:
        next(batches)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.SampleAll(pb.SampleAllRequest(table="default"), timeout=10))
    status = status_of(raised.value)
    (info,), (retry,) = details_of(status, error_details_pb2.ErrorInfo), details_of(status, error_details_pb2.RetryInfo)
    assert (info.reason, info.metadata["limit"]) == ("STREAM_LIMIT", "max_streams")
    assert retry.retry_delay.ToTimedelta().total_seconds() > 0
