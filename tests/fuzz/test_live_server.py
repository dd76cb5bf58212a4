"""A live server and whatever comes over its socket: it stays alive and small, calls nothing its own fault, and serves who comes after.

The short form runs in the suite. ``make fuzz`` runs 200,000 blocks, 200,000 requests and 100,000 HTTP/2 frames, each with another seed each time.
"""

from __future__ import annotations

import collections
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from children import Command, command
from conftest import numbers, rows
from floods.peers import PREFACE, SETTINGS, Peer, frame, headers, message
from fuzz.bodies import RIGHT, SERVICE, TABLES, add_request, changed_block, request
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer

SHARE = float(os.environ.get("TDREPLAY_FUZZ", "0.005"))
"""Of the long form."""
BLOCKS, REQUESTS, FRAMES = (int(SHARE * count) for count in (200_000, 200_000, 100_000))
SEED = int(os.environ.get("TDREPLAY_FUZZ_SEED", "1")) if SHARE < 1 else random.SystemRandom().randrange(1 << 32)
GROWTH = 32 << 20
FRAMES_PER_CONNECTION = 20
THREADS = 8
PATH = f"/{SERVICE.full_name}/"
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
SECONDS = 0.5
"""That a request gets: some wait for rows that do not come."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Command]:
    with command(tmp_path_factory.mktemp("fuzz") / "server", "tdreplay-server", "serve", "--address=127.0.0.1:0", "--max-tables=16") as server:
        with grpc.insecure_channel(server.ready()) as channel:
            for name in TABLES:
                ReplayBufferServiceStub(channel).CreateTable(pb.CreateTableRequest.FromString(create_request(name)), timeout=60)
        yield server


def create_request(name: str) -> bytes:
    steps = pb.Trajectories(ends=["terminated", "truncated"], final_fields=["obs"], reward="reward") if name == TABLES[-1] else None
    return pb.CreateTableRequest(table=name, buffer_size=100, trajectories=steps).SerializeToString()


def address(server: Command) -> str:
    return server.ready()


def anonymous_bytes(server: Command) -> int:
    """The memory of the server without the rows, which lie in files."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def traceback(server: Command) -> str:
    """What the log has around the first traceback. gRPC's own lines in it are not always text."""
    log = (server.scratch / "stderr").read_bytes()
    at = log.find(b"Traceback")
    return "" if at < 0 else log[max(0, at - 1000) : at + 5000].decode(errors="replace")


def check(server: Command, act: Callable[[random.Random, int], object], count: int) -> None:
    """Lets threads do something so many times. Then the server is as it was, and serves."""
    threads(server, act, max(1, count // 10), SEED)  # What it needs once, such as its threads, it has after that.
    before = anonymous_bytes(server)
    threads(server, act, count, SEED + 1)
    assert not server.child.ended
    with RemoteReplayBuffer(address(server), timeout=60, table=f"after-{count}", buffer_size=100) as buffer:
        buffer.add_batch(rows(10))
        assert len(numbers(buffer.sample_batch(8))) == 8
    grown = anonymous_bytes(server) - before
    print(f"seed {SEED}: {count} of them, and the server grew by {grown / (1 << 20):.1f} MiB")
    assert traceback(server) == ""
    assert grown < GROWTH


def threads(server: Command, act: Callable[[random.Random, int], object], count: int, seed: int) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        try:
            for turn in range(number, count, THREADS):
                act(chance, turn)
        except BaseException as error:  # noqa: BLE001 - it is raised in the test.
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


class Caller:
    """Makes calls whose requests are bytes, and counts how they ended. None may end as a fault of the server."""

    def __init__(self, server: Command) -> None:
        self._channels = [grpc.insecure_channel(address(server), options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(2)]
        self.ended: collections.Counter[str] = collections.Counter()

    def call(self, turn: int, method: str, requests: list[bytes], most: int = 20) -> None:
        answers = self._channels[turn % 2].stream_stream(PATH + method)(iter(requests), timeout=SECONDS)
        with suppress(grpc.RpcError):
            for _, _ in zip(range(most), answers, strict=False):
                pass
            answers.cancel()
        code = answers.code()
        self.ended[f"{method} {code.name}"] += 1
        assert code not in FAULTS, (method, code, answers.details(), [body[:200] for body in requests])

    def close(self) -> None:
        print(dict(sorted(self.ended.items())))
        for channel in self._channels:
            channel.close()


@pytest.fixture
def caller(server) -> Iterator[Caller]:
    caller = Caller(server)
    yield caller
    caller.close()


def test_changed_blocks(server, caller):
    def act(chance: random.Random, turn: int) -> None:
        caller.call(turn, "Add", [add_request(chance, changed_block(chance, RIGHT))])
        if turn % 50 == 0:  # Else the first block that happens to be right fixes what all others are held against.
            caller.call(turn, "Reset", [b"\x0a\x02f" + str(chance.randrange(4)).encode()])

    check(server, act, BLOCKS)


def test_random_requests_of_every_call(server, caller):
    methods = [method for method in SERVICE.methods if method.name != "Checkpoint"]

    def act(chance: random.Random, turn: int) -> None:
        method = methods[turn % len(methods)]
        if turn % 40 == 0:  # Some were dropped, and most are empty.
            caller.call(turn, "CreateTable", [create_request(chance.choice(TABLES))])
            caller.call(turn, "Add", [add_request(chance, chance.choice(RIGHT))])
        caller.call(turn, method.name, [request(chance, method.input_type) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))])

    check(server, act, REQUESTS)


def test_random_frames_of_http2(server):
    def act(chance: random.Random, turn: int) -> None:
        peer = Peer(address(server), speaks=False)
        if chance.random() < 0.9:
            peer.send(PREFACE + frame(SETTINGS, 0, 0, b""))
        for _ in range(FRAMES_PER_CONNECTION):
            if not peer.send(random_frame(chance)):
                break
        peer.close()

    check(server, act, FRAMES // FRAMES_PER_CONNECTION)


def random_frame(chance: random.Random) -> bytes:
    """A frame of any kind. Some have the payload that their kind has, and some are of another length than they say."""
    kind, flags, stream = (
        chance.choice((*range(11), 0, 1, 99)),
        chance.choice((0, 1, 4, 5, 8, 32, 255)),
        chance.choice((0, 1, 1, 3, 5, 7, 2, 1 << 31)),
    )
    payload = chance.choice((b"", chance.randbytes(chance.choice((1, 4, 5, 8, 100, 20_000)))))
    if kind == 1 and chance.random() < 0.7:
        payload = headers(PATH + chance.choice([method.name for method in SERVICE.methods]), ("x", "y" * chance.choice((1, 9000))))
    if kind == 0 and chance.random() < 0.7:
        payload = message(chance.choice((0, 3, 1 << 20, (1 << 32) - 1)), chance.randbytes(3))
    made = frame(kind, flags, stream & 0xFFFFFFFF, payload)
    if chance.random() < 0.1:
        return struct.pack(">I", chance.choice((0, 5, 1 << 20, (1 << 24) - 1)))[1:] + made[3:]
    return made
