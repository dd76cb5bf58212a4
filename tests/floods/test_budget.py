"""The terms of the memory budget, against what a connection and a call take of a server's memory; and that the server says its budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import grpc
import psutil
import pytest

from children import Server, server_process
from floods.peers import Peer, frame, message
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ServerConfig
from tdreplay_server.transport import memory_budget

CONFIG = ServerConfig(address="127.0.0.1:0", buffer_size=100, max_connections=1000)
CALLS = 50
"""So many that what the first of them cost a server once does not count."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Of its own: what a server has freed is there for the next one that needs memory, and so costs nothing."""
    with server_process(CONFIG) as server:
        yield server


def grown(server: Server, act: Callable[[], object]) -> int:
    """The bytes by which a server has grown once it stands still after something."""
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    act()
    sizes = [before, -1]
    while sizes[-1] != sizes[-2]:
        time.sleep(0.3)
        sizes.append(process.memory_info().rss)
    return sizes[-1] - before


def status(server: Server) -> pb.ServerStatusResponse:
    with grpc.insecure_channel(server.address) as channel:
        return ReplayBufferServiceStub(channel).ServerStatus(pb.ServerStatusRequest(), timeout=20)


def test_a_connection_costs_what_the_budget_says(server):
    with ExitStack() as stack:
        each = grown(server, lambda: [stack.enter_context(closing(Peer(server.address))) for _ in range(500)]) / 500
    print(f"{each / 1024:.1f} KiB a connection")
    assert 4096 < each < memory_budget.CONNECTION_BYTES


def test_bytes_that_nobody_asked_for_are_bounded_by_the_window(server):
    """Calls that take no answer, so that their next request is not read; each sends 4 MiB all the same, as far as the server lets it."""
    watch = "/grpc.health.v1.Health/Watch"

    def send() -> None:
        for peer in peers:
            stream = peer.call(watch)
            peer.send(frame(0, 0, stream, message(0)))
            assert peer.received(until=b"\x08\x01")
            peer.socket.setblocking(False)
            with suppress(OSError):
                for _ in range(256):
                    peer.socket.sendall(frame(0, 0, stream, message(4 << 20) + bytes(16379)))

    with ExitStack() as stack:
        peers = [stack.enter_context(closing(Peer(server.address))) for _ in range(CALLS)]
        each = grown(server, send) / CALLS
    print(f"{each / 1024:.0f} KiB a call")
    assert each < memory_budget.CALL_BYTES + memory_budget.CONNECTION_BYTES + memory_budget.UNREAD_BYTES


def test_the_status_says_the_budget_and_the_limits(server):
    said = status(server)
    budget = memory_budget.memory_budget(CONFIG.limits, CONFIG.max_connections)
    assert said.memory_budget_bytes == budget.size == sum(term.size for term in (*budget.unknown, *budget.known))
    limits = {limit.name: limit for limit in said.limits}
    assert {name for name in vars(CONFIG.limits) if name.startswith("max_") and name != "max_standing"} <= set(limits)
    assert (limits["max_connections"].limit, limits["max_workers"].used, limits["max_message_bytes"].used) == (1000, 0, -1)
