"""Peers without a valid identity: what they send is not read, what they hold is bounded, and whoever has an identity goes on beside them.

The long form, `make hostile`, holds each flood for seconds and compares the rate of a learner beside it with its rate alone.
"""

from __future__ import annotations

import gzip
import multiprocessing
import os
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from statistics import median

import grpc
import psutil
import pytest

from children import Server, child_of, server_process
from conftest import rows
from floods.peers import ADD, CONTINUATION, DATA, END_HEADERS, FRAME, HEADERS, Peer, frame, headers, message
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens import Token, digest_of, new_secret
from tdreplay_server.access.tokens_file import change_tokens
from tdreplay_server.transport.memory_budget import memory_budget

LONG = "TDREPLAY_FLOODS" in os.environ
SECONDS = 4.0 if LONG else 0.5
ROUNDS = 3 if LONG else 1
LEAST_SHARE = 0.9 if LONG else 0.02
"""Of its rate that a learner keeps. In the suite other tests take the cores away from either side, so there it says no more than that it goes on."""
SETTINGS = {"max_connections": 4096, "max_workers": 512, "max_streams": 256, "connection_idle_seconds": 2.0}
CONNECTIONS = 2000
Counter = multiprocessing.get_context("forkserver").Value


def token_file(path: Path) -> str:
    """A file with the token of an admin, which it gives."""
    secret = new_secret()
    token = Token(name="admin", sha256=digest_of(secret).hex(), roles=(Role.ADMIN,), created=datetime.now(timezone.utc))
    change_tokens(path, lambda tokens: tokens.with_token(token))
    return secret


def learn(address: str, token: str, batches) -> None:
    """In a process of its own: counts the batches of a stream until it is killed."""
    requests: queue.SimpleQueue[pb.SampleRequest] = queue.SimpleQueue()
    requests.put(pb.SampleRequest(table="default", batch_size=64, credits=4))
    with grpc.insecure_channel(address) as channel:
        answers = ReplayBufferServiceStub(channel).Sample(iter(requests.get, None), metadata=[("authorization", f"Bearer {token}")])
        next(answers)
        print("learns", flush=True)
        for _ in answers:
            batches.value += 1
            requests.put(pb.SampleRequest(credits=1))


class Served:
    """A server that asks for tokens, and a learner that has one."""

    def __init__(self, server: Server, token: str, batches) -> None:
        self.address, self.token, self._batches = server.address, token, batches
        self.process = psutil.Process(server.pid)
        self.budget = memory_budget(ServerConfig(**SETTINGS).limits, SETTINGS["max_connections"])

    def rate(self, seconds: float = SECONDS) -> float:
        """The learner's batches a second."""
        before, start = self._batches.value, time.monotonic()
        time.sleep(seconds)
        return (self._batches.value - before) / (time.monotonic() - start)

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """The most bytes by which the server grows within the block: the one entry of the list, afterwards."""
        found, over, before = [0], threading.Event(), self.process.memory_info().rss

        def watch() -> None:
            while not over.wait(0.01):
                found[0] = max(found[0], self.process.memory_info().rss - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield found
        finally:
            over.set()
            watcher.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    token, batches = token_file(file), Counter("q", 0)
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000, tokens_file=file, **SETTINGS)) as server:
        with RemoteReplayBuffer(server.address, token=token) as buffer:
            buffer.add_batch(rows(1000))
        with child_of(learn, server.address, token, batches):
            yield Served(server, token, batches)


# -- what they do ---------------------------------------------------------------------------------------------------------------------------------


def bodies(address: str) -> list[Peer]:
    """Bodies of 50 MB on 4 connections, whatever the server says of its window."""
    peers = [Peer(address) for _ in range(4)]
    for peer in peers:
        stream = peer.call(ADD)
        peer.body(stream, message(50_000_000))
        assert b"tdreplay-error" in peer.received()
        peer.body(stream, bytes(50_000_000))
    return peers


@cache
def bomb() -> bytes:
    """Made once: to pack it takes longer than a server leaves an idle connection open."""
    return gzip.compress(bytes(1 << 30 if LONG else 1 << 26), 1)


def bombs(address: str) -> list[Peer]:
    """A message that says it unpacks to 1 GiB: 1 MB of zeros, packed."""
    packed = bomb()
    peer = Peer(address)
    stream = peer.call(ADD, ("grpc-encoding", "gzip"))
    peer.body(stream, message(len(packed), packed, compressed=True))
    assert b"grpc-status" in peer.received()
    return [peer]


def large_headers(address: str) -> list[Peer]:
    """26 MB of headers of one call: one value of that size, and 26,000 values."""
    value = b"\x00\x07x-large" + b"\x7f" + _length(26_000_000 - 127) + b"a" * 26_000_000
    peers = []
    for more in (value, 26_000 * (b"\x00\x07x-large\x7f\x81\x07" + b"a" * 1024)):
        peer, block = Peer(address), headers(ADD) + more
        peer.send(frame(HEADERS, 0, 1, block[:FRAME]))
        for at in range(FRAME, len(block), FRAME):
            peer.send(frame(CONTINUATION, END_HEADERS if at + FRAME >= len(block) else 0, 1, block[at : at + FRAME]))
        assert b"grpc-status\x018" in peer.received()
        peers.append(peer)
    return peers


def _length(value: int) -> bytes:
    """The rest of a length of HPACK."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def idle_connections(address: str) -> list[Peer]:
    """2,000 connections that say nothing but HTTP/2's preface."""
    return [Peer(address) for _ in range(CONNECTIONS)]


def silent_connections(address: str) -> list[Peer]:
    """As many that say nothing at all."""
    return [Peer(address, speaks=False) for _ in range(CONNECTIONS)]


def slow_senders(address: str) -> list[Peer]:
    """Connections that stop in the middle: of the preface, of a frame, of the headers, of a message."""
    peers = [Peer(address, speaks=False) for _ in range(50)]
    for peer in peers:
        peer.send(b"PRI * HT")
    halves = [Peer(address) for _ in range(150)]
    for number, peer in enumerate(halves):
        block = headers(ADD)
        if number % 3 == 0:
            peer.send(frame(HEADERS, END_HEADERS, 1, block)[:20])
        elif number % 3 == 1:
            peer.send(frame(HEADERS, 0, 1, block))
        else:
            peer.send(frame(DATA, 0, peer.call(ADD), message(1000, b"half")))
    return peers + halves


def unread_streams(address: str) -> list[Peer]:
    """Streams that are opened, on connections whose answers nobody reads."""
    peers = [Peer(address) for _ in range(20)]
    for peer in peers:
        for _ in range(100):
            peer.call("/tdreplay.v1.ReplayBufferService/Sample")
    return peers


FLOODS: list[Callable[[str], list[Peer]]] = [bodies, bombs, large_headers, idle_connections, silent_connections, slow_senders, unread_streams]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_a_flood_of_unknown_peers_costs_a_bounded_amount_and_stops_nobody(served, flood):
    shares, peaks = [], []
    with more_files():
        for _ in range(ROUNDS):
            alone = served.rate()
            with served.peak() as peak:
                shares.append(rate_beside(served, flood) / alone)
            peaks += peak
    print(f"{flood.__doc__} The server grew by {max(peaks) / (1 << 20):.1f} MiB of a budget of {served.budget.unknown_bytes >> 20} MiB;")
    print(f"a learner kept {', '.join(f'{share:.2f}' for share in shares)} of its rate, {alone:.0f} batches a second.")
    assert max(peaks) < served.budget.unknown_bytes
    assert median(shares) > LEAST_SHARE


def rate_beside(served: Served, flood: Callable[[str], list[Peer]]) -> float:
    """The learner's rate while peers do something, once a second, and then hold what they have."""
    peers = flood(served.address)
    with ThreadPoolExecutor(1) as pool:
        rate = pool.submit(served.rate)
        while wait([rate], 1.0).not_done:
            for peer in peers:
                peer.close()
            peers = flood(served.address)
    for peer in peers:
        peer.close()
    return rate.result()


def test_connections_that_do_nothing_are_closed(served):
    """Those that spoke HTTP/2 and have had no call for a while. A client connects again by itself."""
    with RemoteReplayBuffer(served.address, token=served.token) as buffer:
        assert buffer.size == 1000
        idle = Peer(served.address)
        assert idle.is_closed(4 * SETTINGS["connection_idle_seconds"])
        assert buffer.size == 1000
        idle.close()


@contextmanager
def more_files() -> Iterator[None]:
    """Lets this process have as many files open as the floods need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
