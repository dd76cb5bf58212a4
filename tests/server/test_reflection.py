"""What grpcurl does, which has no proto: it lists, describes, and calls with what the server's reflection says."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from conftest import rows
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

REPLAY, HEALTH = "tdreplay.v1.ReplayBufferService", "grpc.health.v1.Health"


@pytest.fixture
def channel(address) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as opened:
        yield opened


def asked(channel: grpc.Channel, **question: str) -> ServerReflectionResponse:
    """The answer to one question, over a call of its own, as grpcurl asks."""
    (answer,) = ServerReflectionStub(channel).ServerReflectionInfo(iter([ServerReflectionRequest(**question)]), timeout=10)
    return answer


def described(channel: grpc.Channel, symbol: str) -> DescriptorPool:
    """A pool that has what the server says of a symbol, and nothing else."""
    pool = DescriptorPool()
    answer = asked(channel, file_containing_symbol=symbol).file_descriptor_response
    files = [FileDescriptorProto.FromString(file) for file in answer.file_descriptor_proto]
    for file in reversed(files):  # The files that a file imports come after it.
        pool.Add(file)
    return pool


def called(channel: grpc.Channel, service: str, method: str, /, **fields: object) -> list[dict[str, object]]:
    """What a method answers, as JSON, called with nothing but its name and its fields."""
    found = described(channel, service).FindServiceByName(service).FindMethodByName(method)
    request, answer = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
    call = channel.unary_stream(f"/{service}/{method}", request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
    return [MessageToDict(message) for message in call(ParseDict(fields, request()), timeout=10)]


def test_the_services_are_listed(channel):
    listed = {service.name for service in asked(channel, list_services="").list_services_response.service}
    assert listed == {REPLAY, HEALTH, "grpc.reflection.v1alpha.ServerReflection"}


def test_a_service_is_described_with_its_calls(channel):
    calls = {method.name: method.server_streaming for method in described(channel, REPLAY).FindServiceByName(REPLAY).methods}
    assert calls["Describe"] is False
    assert calls["Sample"] is True


def test_calls_through_descriptors_that_reflection_gave(channel, address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer:
        buffer.add_batch(rows(4))
        buffer.describe()
    (description,) = called(channel, REPLAY, "Describe", table=table)
    assert (description["bufferSize"], description["size"]) == ("10", "4")
    assert called(channel, HEALTH, "Check", service="") == [{"status": "SERVING"}]


@pytest.mark.parametrize("question", [{"file_containing_symbol": "tdreplay.v1.Secret"}, {"file_by_filename": "../etc/passwd"}])
def test_what_is_not_there_is_an_answer_and_no_error_of_the_call(channel, question):
    assert asked(channel, **question).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_that_is_held_open_takes_no_thread_from_other_calls():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10, max_workers=2, max_streams=1)) as server:
        with grpc.insecure_channel(server.address) as channel, RemoteReplayBuffer(server.address, timeout=10) as buffer:
            questions: list[queue.SimpleQueue[ServerReflectionRequest | None]] = [queue.SimpleQueue() for _ in range(8)]
            for asking in questions:
                asking.put(ServerReflectionRequest(list_services=""))
            held = [ServerReflectionStub(channel).ServerReflectionInfo(iter(asking.get, None), timeout=60) for asking in questions]
            assert [len(next(call).list_services_response.service) for call in held] == [3] * 8
            buffer.add_batch(rows(3))
            assert buffer.size == 3
            for asking in questions:
                asking.put(None)
