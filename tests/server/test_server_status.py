"""What a server says of itself: who is connected, what is open, what came and went, and how much of it is left."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from safetensors.torch import save

from conftest import rows
from tdreplay.server_status import ConnectedClient, Limit, ServerStatus
from tdreplay.server_status_messages import server_status_from_message, server_status_to_message
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.clients import Clients
from tdreplay_server.transport.guards.statuses import statuses

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a server with a data directory, for these tests alone."""
    config = ServerConfig(address="127.0.0.1:0", data_dir=tmp_path_factory.mktemp("status") / "data", max_streams=3, max_tables=7)
    with ReplayServer(config) as server:
        yield server.address


def status(address: str) -> ServerStatus:
    return RemoteReplayBuffer.server_status(address, timeout=10)


def client_with(address: str, call: str) -> ConnectedClient:
    """The one client that has such a call open."""
    (found,) = [client for client in status(address).clients if call in client.open_calls]
    return found


def limit(address: str, name: str) -> Limit:
    (found,) = [limit for limit in status(address).limits if limit.name == name]
    return found


def test_a_status_goes_through_a_message_unchanged():
    client = ConnectedClient(
        peer="[::1]:5000",
        name="sam",
        roles=("actor", "reader"),
        open_calls={"Add": 2, "Sample": 1},
        connected_seconds=2.5,
        messages_received=1,
        bytes_received=2,
        messages_sent=3,
        bytes_sent=4,
    )
    said = ServerStatus(
        version="1",
        uptime_seconds=3.5,
        memory_bytes=1,
        memory_budget_bytes=2,
        disk_free_bytes=-1,
        disk_bytes=5,
        tls=True,
        authenticated=True,
        durability="power",
        cluster="replay",
        shard=0,
        clients=(client,),
        limits=(Limit(name="max_streams", limit=3, used=2, refused=1),),
    )
    assert server_status_from_message(pb.ServerStatusResponse.FromString(server_status_to_message(said).SerializeToString())) == said
    assert said.to_json()["clients"] == [client.to_json()]
    assert said.to_json()["limits"] == [{"name": "max_streams", "limit": 3, "used": 2, "refused": 1}]


def test_a_server_says_what_it_is_and_what_it_has(server, tmp_path):
    said, later = status(server), status(server)
    assert (said.version, said.durability, said.tls, said.authenticated) == (importlib.metadata.version("tdreplay"), "process", False, False)
    assert 0 < said.uptime_seconds < later.uptime_seconds
    assert 10 << 20 < said.memory_bytes < 8 << 30
    assert said.disk_bytes == shutil.disk_usage(tmp_path).total
    assert 0 < said.disk_free_bytes <= said.disk_bytes


def test_a_server_without_a_data_directory_has_no_disk_and_keeps_nothing():
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        said = status(server.address)
    assert (said.disk_bytes, said.disk_free_bytes, said.durability) == (-1, -1, "none")


def test_a_shard_says_which_one_it_is():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", cluster="replay", shard=0)) as server:
        said = status(server.address)
    assert (said.cluster, said.shard) == ("replay", 0)


def test_a_server_that_is_no_shard_says_so(server):
    said = status(server)
    assert (said.cluster, said.shard) == ("", None)


def test_memory_that_a_server_takes_is_said(server):
    before = status(server).memory_bytes
    taken = bytearray(b"x" * (64 << 20))  # The server is in this process.
    assert status(server).memory_bytes - before > 60 << 20
    del taken


def test_what_a_client_has_open_is_said_until_it_closes_it(server, table):
    with RemoteReplayBuffer(server, table=table, buffer_size=100, timeout=10, transport="grpc") as buffer:
        buffer.add_batch(rows(50))
        with buffer.stream(5) as stream:
            next(stream)
            client = client_with(server, "Sample")
            assert client.open_calls["Sample"] == 1
            assert (client.name, client.roles) == ("", ("admin",))
            assert client.peer.startswith("127.0.0.1:")
            assert client.connected_seconds > 0
        with buffer.stream(5) as stream:  # Over the same connection.
            next(stream)
            again = client_with(server, "Sample")
        assert again.peer == client.peer
        assert again.messages_sent > client.messages_sent
        assert again.bytes_sent > client.bytes_sent
        assert again.connected_seconds > client.connected_seconds


def test_every_message_and_byte_of_a_client_is_counted(server, table):
    block = save({"x": torch.zeros(3, 4)}, {"batch_shape": "[3]"})
    requests = [pb.AddRequest(table=table, block=block)] * 5
    with grpc.insecure_channel(server) as channel:
        stub = ReplayBufferServiceStub(channel)
        first = pb.CreateTableRequest(table=table, buffer_size=10)
        answers = [stub.CreateTable(first), *map(stub.Add, requests)]
        stub.ServerStatus(pb.ServerStatusRequest())
        said = server_status_from_message(stub.ServerStatus(pb.ServerStatusRequest()))
    (client,) = [client for client in said.clients if client.messages_received == 8]
    assert client.open_calls == {"ServerStatus": 1}
    assert client.bytes_received == first.ByteSize() + sum(request.ByteSize() for request in requests)
    assert client.messages_sent == 7
    assert client.bytes_sent > sum(answer.ByteSize() for answer in answers)


def test_a_client_of_a_unix_socket_is_called_unix(tmp_path):
    with ReplayServer(ServerConfig(address=f"unix:{tmp_path / 'socket'}")) as server:
        assert [client.peer for client in status(server.address).clients] == ["unix"]


def test_limits_say_what_is_used_and_what_was_refused(server, table):
    before = limit(server, "max_tables")
    with RemoteReplayBuffer(server, table=table, buffer_size=100, timeout=1) as buffer, contextlib.ExitStack() as streams:
        buffer.add_batch(rows(50))
        assert limit(server, "max_tables") == Limit(name="max_tables", limit=7, used=before.used + 1)
        for _ in range(3):
            next(streams.enter_context(buffer.stream(5)))
        refused = limit(server, "max_streams").refused
        assert limit(server, "max_streams").used == 3
        with grpc.insecure_channel(server) as channel, pytest.raises(grpc.RpcError) as error:
            list(ReplayBufferServiceStub(channel).Sample(iter([pb.SampleRequest(table=table, batch_size=5, credits=1)])))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert limit(server, "max_streams").refused == refused + 1
        assert limit(server, "max_workers").used >= 4
    buffer.close()


# -- the guard alone --------------------------------------------------------------------------------------------------------------------------


class Service:
    """A call that waits until it may go on."""

    def __init__(self) -> None:
        self.go, self.runs = threading.Event(), threading.Semaphore(0)

    def ListTables(self, request, call):  # noqa: N802 - the proto's name.
        return pb.ListTablesResponse()

    def Describe(self, request, call):  # noqa: N802 - the proto's name.
        self.runs.release()
        self.go.wait(10)
        return pb.DescribeResponse()

    def __getattr__(self, name):
        return self.ListTables


@contextlib.contextmanager
def served(clients: Clients, service: Service) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Dispatch(SERVICE, service, (statuses, clients), lambda: True),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        service.go.set()
        server.stop(0).wait()


@contextlib.contextmanager
def caller(address: str) -> Iterator[ReplayBufferServiceStub]:
    """A client with a connection of its own."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield ReplayBufferServiceStub(channel)


def open_calls(clients: Clients) -> list[dict[str, int]]:
    return sorted((dict(client.open_calls) for client in clients.connected()), key=str)


def test_of_more_clients_than_are_known_the_longest_idle_are_forgotten_and_none_with_an_open_call():
    clients, service = Clients(most=2), Service()
    with served(clients, service) as address, caller(address) as busy, caller(address) as one, caller(address) as other:
        waiting = busy.Describe.future(pb.DescribeRequest())
        assert service.runs.acquire(timeout=10)
        one.ListTables(pb.ListTablesRequest())
        (first,) = [client.peer for client in clients.connected() if not client.open_calls]
        other.ListTables(pb.ListTablesRequest())
        assert open_calls(clients) == [{"Describe": 1}, {}]
        assert first not in {client.peer for client in clients.connected()}
        service.go.set()
        waiting.result(10)


def test_a_client_for_which_there_is_no_room_is_served_and_not_counted():
    clients, service = Clients(most=1), Service()
    with served(clients, service) as address, caller(address) as busy, caller(address) as other:
        waiting = busy.Describe.future(pb.DescribeRequest())
        assert service.runs.acquire(timeout=10)
        other.ListTables(pb.ListTablesRequest())
        assert open_calls(clients) == [{"Describe": 1}]
        service.go.set()
        waiting.result(10)


def test_a_client_whose_calls_ended_some_time_ago_is_forgotten():
    clients, service = Clients(kept_seconds=0.0), Service()
    with served(clients, service) as address, caller(address) as busy, caller(address) as other:
        waiting = busy.Describe.future(pb.DescribeRequest())
        assert service.runs.acquire(timeout=10)
        other.ListTables(pb.ListTablesRequest())
        assert [client.messages_received for client in clients.connected()] == [1]
        assert open_calls(clients) == [{"Describe": 1}]
        service.go.set()
        waiting.result(10)
