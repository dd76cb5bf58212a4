"""What an address may be, and calls to this host that no proxy gets."""

from __future__ import annotations

import pytest

from conftest import rows
from tdreplay.errors import InvalidArgumentError
from tdreplay.v1.replay_buffer_pb2 import DESCRIPTOR
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_client.transport.addresses import check_target
from tdreplay_client.transport.channels import SERVICE_NAME
from tdreplay_client.transport.health import serves
from tdreplay_server import ReplayServer, ServerConfig

GOOD = [
    "127.0.0.1:50051",
    "localhost:1",
    "replay.example.org:65535",
    "replay_1:50051",
    "[::1]:50051",
    "[fe80::1%eth0]:50051",
    "dns:replay:50051",
    "dns:///replay:50051",
    "dns://1.1.1.1/replay:50051",
    "ipv4:127.0.0.1:50051",
    "ipv4:127.0.0.1:50051,127.0.0.2:50052",
    "ipv6:[::1]:50051",
    "unix:server.sock",
    "unix:/run/replay/server.sock",
    "unix-abstract:replay",
]
BAD = [
    "",
    " ",
    "localhost",
    "127.0.0.1",
    ":50051",
    "localhost:",
    "localhost:0",
    "localhost:65536",
    "localhost:115587",
    f"localhost:{10**400}",
    "localhost:-1",
    "localhost:+50051",
    "localhost:5_0",
    "localhost:" + "".join(chr(0x0660 + digit) for digit in (5, 0, 0, 5, 1)),
    "localhost:http",
    "localhost:50051/",
    "http://localhost:50051",
    "tcp://localhost:50051",
    "::1:50051",
    "[::1]",
    "[localhost]:50051",
    "[::1:50051",
    "local host:50051",
    "localhost\n:50051",
    "dns:localhost:65537",
    "dns:///localhost",
    "ipv4:127.0.0.1:1,127.0.0.1:65537",
    "unix:",
    "unix://",
    "unix-abstract:",
    "unix:/" + "x" * 107,
    None,
    50051,
    b"localhost:50051",
]


@pytest.mark.parametrize("address", GOOD)
def test_an_address_is_taken_as_it_is(address):
    assert check_target(address) == check_target(f" {address}\n") == address


def test_a_path_may_come_as_a_url():
    assert check_target("unix:///run/server.sock") == check_target("UNIX:/run/server.sock") == "unix:/run/server.sock"


@pytest.mark.parametrize("address", BAD, ids=lambda address: repr(address)[:40])
def test_what_is_no_address_is_refused_by_all_that_take_one(address):
    uses = [RemoteReplayBuffer, RemoteReplayBuffer.tables, lambda given: ReplayDataset(given, 4), lambda given: serves(given, 5.0)]
    for use in uses:
        with pytest.raises(InvalidArgumentError, match=r"^address \("):
            use(address)


def test_a_port_that_is_too_large_does_not_wrap_around(address):
    host, _, port = address.rpartition(":")
    with pytest.raises(InvalidArgumentError, match=str(int(port) + 65536)):
        RemoteReplayBuffer(f"{host}:{int(port) + 65536}", timeout=5)


@pytest.mark.parametrize("form", ["{}", "dns:///{}", "ipv4:{}", " {}\n"])
def test_longer_forms_reach_the_server(address, form):
    assert isinstance(RemoteReplayBuffer.tables(form.format(address), timeout=5), list)


@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", "https_proxy", "all_proxy"])
def test_a_proxy_does_not_get_calls_to_this_host(address, table, monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    with ReplayServer(ServerConfig(address=f"unix:{tmp_path / 'server.sock'}")) as server:
        for local in (address, address.replace("127.0.0.1", "localhost"), f"dns:///{address}", server.address):
            with RemoteReplayBuffer(local, table=table, buffer_size=10, timeout=5) as buffer:
                buffer.add_batch(rows(2))
                assert len(buffer.sample_batch(3)) == 3
            assert serves(local, 5.0) == (True, "SERVING")


def test_the_name_of_the_service_is_that_of_the_proto():
    assert DESCRIPTOR.services_by_name["ReplayBufferService"].full_name == SERVICE_NAME
