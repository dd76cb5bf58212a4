"""Rows that a server writes to memory of its client: it writes where it is asked to, and believes nothing that the client says of its memory."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import queue
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdreplay.block import layout_of
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

ROWS = 8
SLOTS, SLOT = 2, 1 << 20
SIZE = 4096 + SLOTS * SLOT
NONCE = bytes(range(16))
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PUNCH_HOLE = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE, with FALLOC_FL_KEEP_SIZE, which it needs."""
FREE = 0xAA
"""What lies where nothing was written."""


@pytest.fixture
def filled(address: str, table: str) -> Iterator[str]:
    """A table whose rows have a large field, each value of which is the row's number."""
    with RemoteReplayBuffer(address, table=table, buffer_size=50) as buffer:
        buffer.add_batch(TensorDict({"frame": torch.arange(50).unsqueeze(1).expand(-1, 2048).clone(), "small": torch.arange(50)}, [50]))
        yield table


class Memory:
    """A client's memory, as it should be, or not."""

    def __init__(self, name: str = "tdreplay", seals: int = SEALS, size: int = SIZE, flags: int = 0) -> None:
        self.file = os.memfd_create(name, os.MFD_ALLOW_SEALING | flags)
        os.ftruncate(self.file, size)
        if not flags:
            self.seen = np.frombuffer(mmap.mmap(self.file, size), np.uint8)
            self.seen[:SIZE] = FREE
            self.seen[: len(NONCE)] = list(NONCE)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, seals)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.file}"

    def offer(self, **wrong: object) -> pb.SharedMemory:
        return pb.SharedMemory(**{"path": self.path, "nonce": NONCE, "slots": SLOTS, "slot_bytes": SLOT, **wrong})

    def slot(self, number: int) -> np.ndarray:
        return self.seen[4096 + number * SLOT : 4096 + (number + 1) * SLOT]

    def close(self) -> None:
        os.close(self.file)


@pytest.fixture
def memory() -> Iterator[Memory]:
    with closing(Memory()) as made:
        yield made


class Placed:
    """A call whose rows go to memory of the client."""

    def __init__(self, address: str, table: str, offer: pb.SharedMemory, **query: object) -> None:
        self._channel = grpc.insecure_channel(address)
        self._requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        first = pb.SampleRequest(**{"table": table, "batch_size": ROWS, "shared_slots": 1, "client_memory": offer, "wants_totals": True, **query})
        self._answers = ReplayBufferServiceStub(self._channel).Sample(iter(self._next, None), timeout=60)
        self._requests.put(first)
        self.header = next(self._answers).placed_header

    def _next(self) -> pb.SampleRequest | None:
        return self._requests.get()

    def place(self, *parts: tuple[int, list[int]], **more: object) -> pb.SampleResponse:
        self._requests.put(pb.SampleRequest(placed=[pb.PlacedRows(slot=slot, places=places) for slot, places in parts], **more))
        return next(self._answers)

    def close(self) -> None:
        self._requests.put(None)
        self._answers.cancel()
        self._channel.close()


@contextmanager
def placed(address: str, table: str, offer: pb.SharedMemory, **query: object) -> Iterator[Placed]:
    with closing(Placed(address, table, offer, **query)) as call:
        yield call


def columns(call: Placed, memory: Memory, slot: int) -> dict[str, np.ndarray]:
    return {name: column.numpy() for name, column in layout_of(call.header).views(memory.slot(slot)).items()}


def test_rows_are_written_to_their_places_and_nowhere_else(address, filled, memory):
    with placed(address, filled, memory.offer()) as call:
        assert call.place((1, [0, 2, 3, 7])).placed == 1
        found, free = columns(call, memory, 1), FREE * 0x0101010101010101 - (1 << 64)
        assert (found["frame"][[1, 4, 5, 6]] == free).all()
        assert (found["row_id"][[1, 4, 5, 6]] == free).all()
        rows = found["row_id"][[0, 2, 3, 7]]
        assert ((rows >= 0) & (rows < 50)).all()
        assert (found["frame"][[0, 2, 3, 7]] == rows[:, None]).all()
        assert (found["index"][[0, 2, 3, 7]] == rows).all()
        assert (found["small"][[0, 2, 3, 7]] == rows).all()
        assert (memory.slot(0) == FREE).all(), "nothing was asked for in the other slot"
        answer = call.place((1, [1, 4, 5, 6]), (0, list(range(8))))
        assert (answer.placed, answer.totals.rows) == (3, 50)
        for slot in (0, 1):
            found = columns(call, memory, slot)
            assert (found["frame"] == found["row_id"][:, None]).all()
    assert bytes(memory.seen[:16]) == NONCE


def test_a_call_that_offers_what_is_none_writes_nothing(address, filled, memory):
    wrong = [{"nonce": bytes(16)}, {"nonce": NONCE[:15]}, {"slots": 0}, {"slots": -1}, {"slots": 1}, {"slots": 3}, {"slots": (1 << 63) - 1}]
    wrong += [{"slot_bytes": size} for size in (0, -4096, 4096, SLOT - 4096, 1 << 40, (1 << 63) - 1, -(1 << 63))]
    wrong += [{"slots": 1 << 16, "slot_bytes": 1}, {"path": ""}, {"path": f"{memory.path}/"}, {"path": f"/proc/{os.getpid()}/fd/999999"}]
    for change in wrong:
        with placed(address, filled, memory.offer(**change)) as call:
            assert not call.header, change
    assert (memory.seen[16:] == FREE).all()


def test_no_other_file_is_opened(address, filled, tmp_path):
    victim = tmp_path / "tdreplay-victim.slots"
    victim.write_bytes(NONCE + bytes(SIZE - len(NONCE)))
    victim.chmod(0o600)
    os.mkfifo(tmp_path / "pipe")
    pipe, opened = os.open(tmp_path / "pipe", os.O_RDWR), os.open(victim, os.O_RDWR)
    others = [
        Memory(name="wayland"),
        Memory(seals=0),
        Memory(seals=fcntl.F_SEAL_GROW),
        Memory(seals=SEALS & ~fcntl.F_SEAL_SEAL),
        Memory(size=SIZE - 1),
    ]
    with suppress(OSError):  # The system may have none.
        others.append(Memory(size=4 << 20, flags=os.MFD_HUGETLB))
    try:
        paths = [
            str(victim),
            f"/proc/self/cwd/{victim}",
            *(f"/proc/{os.getpid()}/fd/{file}" for file in (pipe, opened)),
            *(one.path for one in others),
        ]
        for path in paths:
            with placed(address, filled, pb.SharedMemory(path=path, nonce=NONCE, slots=SLOTS, slot_bytes=SLOT)) as call:
                assert not call.header, path
    finally:
        for one in others:
            one.close()
        os.close(pipe)
        os.close(opened)
    assert victim.read_bytes() == NONCE + bytes(SIZE - len(NONCE))


@pytest.mark.parametrize(
    "parts",
    [
        *([(0, places)] for places in ([], [8], [1, 1], [2, 1], [(1 << 32) - 1], list(range(9)))),
        *([(slot, [0])] for slot in (-1, 2, 1 << 62)),
        [(0, [0]), (2, [0])],
        [(0, [0])] * 1025,
    ],
)
def test_places_that_are_not_there_end_the_call_and_nothing_is_written(address, filled, memory, parts):
    with placed(address, filled, memory.offer()) as call:
        with pytest.raises(grpc.RpcError) as error:
            call.place(*parts)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (memory.seen[16:] == FREE).all()


@pytest.mark.parametrize("more", [{"credits": 1}, {"next": [pb.NextBatch(rows=1)]}, {"released_slots": [0]}])
def test_batches_are_asked_for_in_one_way(address, filled, memory, more):
    with placed(address, filled, memory.offer()) as call:
        with pytest.raises(grpc.RpcError) as error:
            call.place((0, [0]), **more)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_places_without_memory_are_refused(address, filled):
    requests = [pb.SampleRequest(table=filled, batch_size=ROWS), pb.SampleRequest(placed=[pb.PlacedRows(places=[0])])]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
        next(ReplayBufferServiceStub(channel).Sample(iter(requests), timeout=20))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_makes_holes_in_its_memory_harms_nobody(address, filled, memory):
    with placed(address, filled, memory.offer()) as call:
        call.place((0, [0]))
        assert ctypes.CDLL(None).fallocate(memory.file, PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(SIZE)) == 0
        with pytest.raises(PermissionError):
            os.ftruncate(memory.file, 4096)
        assert call.place((0, list(range(8)))).placed == 2
        found = columns(call, memory, 0)
        assert (found["frame"] == found["row_id"][:, None]).all()


def test_seeds_windows_and_tables_that_count_draws_are_not_written_so(address, filled, memory):
    with placed(address, filled, memory.offer(), seed=1) as call:
        assert not call.header
    with RemoteReplayBuffer(address, table=f"{filled}-counted", buffer_size=10, max_times_sampled=2) as buffer:
        buffer.add_batch(TensorDict({"frame": torch.zeros(10, 2048)}, [10]))
        with placed(address, f"{filled}-counted", memory.offer()) as call:
            assert not call.header


def test_memory_of_all_clients_is_bounded_and_comes_back():
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server, closing(Memory(size=4096 + 2 * (64 << 20))) as large:
        with RemoteReplayBuffer(server.address, table="t", buffer_size=50) as buffer:
            buffer.add_batch(TensorDict({"frame": torch.zeros(50, 2048)}, [50]))
        offer = large.offer(slot_bytes=64 << 20)
        calls = [Placed(server.address, "t", offer) for _ in range(9)]
        try:
            assert [bool(call.header) for call in calls] == [True] * 8 + [False]
        finally:
            for call in calls:
                call.close()
        assert any(_is_written_to(server.address, "t", offer) for _ in range(1000))


def _is_written_to(address: str, table: str, offer: pb.SharedMemory) -> bool:
    with placed(address, table, offer) as call:
        return bool(call.header)


def test_only_clients_on_this_host_are_written_to(filled, memory):
    host = _own_address()
    if host is None:
        pytest.skip("this host has no address but the loopback")
    with ReplayServer(ServerConfig(address="0.0.0.0:0", insecure=True)) as server:
        port = server.address.rsplit(":", 1)[1]
        with RemoteReplayBuffer(f"127.0.0.1:{port}", table="t", buffer_size=50, transport="grpc") as buffer:
            buffer.add_batch(TensorDict({"frame": torch.zeros(50, 2048)}, [50]))
        for reached, written in ((f"127.0.0.1:{port}", True), (f"{host}:{port}", False)):
            with placed(reached, "t", memory.offer()) as call:
                assert bool(call.header) is written


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # Nothing is sent.
        found = str(probe.getsockname()[0])
        return None if found.startswith("127.") or not Path("/proc/net").is_dir() else found
    return None
