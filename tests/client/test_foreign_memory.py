"""What a hostile server offers as shared memory: a client maps nothing that may be anything but a server's memory, and believes no number."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import CodecError, ReplayError
from tdreplay.framing import split
from tdreplay.mapped_segments import MappedSegments
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2 import SharedMemory
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.reading.batch_credit import BatchCredit
from tdreplay_client.reading.segment_loans import SegmentLoans

SLOT = 1 << 20
SIZE = 4096 + 2 * SLOT
NONCE = bytes(range(16))
CONTENTS = NONCE + bytes(SIZE - len(NONCE))
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def offered(path: str | Path, **wrong: object) -> SharedMemory:
    return SharedMemory(**{"path": str(path), "nonce": NONCE, "slots": 2, "slot_bytes": SLOT, **wrong})


@pytest.fixture
def memory() -> Iterator[Callable[..., Path]]:
    """Makes anonymous files, and gives their paths."""
    made: list[int] = []

    def make(name: str = "tdreplay", seals: int = SEALS, contents: bytes = CONTENTS) -> Path:
        made.append(os.memfd_create(name, os.MFD_ALLOW_SEALING))
        os.write(made[-1], contents)
        fcntl.fcntl(made[-1], fcntl.F_ADD_SEALS, seals)
        return Path(f"/proc/{os.getpid()}/fd/{made[-1]}")

    yield make
    for file in made:
        os.close(file)


def check_refused(path: str | Path) -> None:
    with pytest.raises(OSError, match=r"tdreplay|/|No such"):
        MappedSegments(offered(path))


def test_memory_that_a_server_sealed_is_mapped(memory):
    assert MappedSegments(offered(memory())).block(1).nbytes == SLOT


def test_other_anonymous_files_are_not_mapped(memory):
    for path in (
        memory(seals=0),
        memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        memory(name="wayland"),
        memory(contents=bytes(SIZE)),
        memory(contents=CONTENTS[:-1]),
        Path(f"/proc/{os.getpid()}/fd/999999"),
    ):
        check_refused(path)


def test_a_file_is_not_mapped_whatever_its_path_looks_like(tmp_path):
    victim = tmp_path / "tdreplay-victim.slots"
    victim.write_bytes(CONTENTS)
    victim.chmod(0o600)
    with victim.open("r+b") as file:
        through = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        for path in (victim, through, f"/proc/self/fd/../../../{victim}", f"/proc/self/cwd/{victim}", through.parent / "." / through.name):
            check_refused(path)
        victim.unlink()
        check_refused(through)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    device = os.open("/dev/null", os.O_RDWR)
    try:
        for number in (pipe, device):
            check_refused(f"/proc/{os.getpid()}/fd/{number}")
        check_refused(tmp_path / "pipe")
    finally:
        os.close(pipe)
        os.close(device)


def test_in_the_folder_only_a_servers_files_are_mapped(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    for directory in (folder, elsewhere):
        directory.mkdir()
    monkeypatch.setenv("TDREPLAY_SHARED_MEMORY_DIR", str(folder))

    def file(name: str, mode: int = 0o600, contents: bytes = CONTENTS) -> Path:
        (folder / name).write_bytes(contents)
        (folder / name).chmod(mode)
        return folder / name

    MappedSegments(offered(file("tdreplay-good.slots")))
    victim = elsewhere / "tdreplay-victim.slots"
    victim.write_bytes(CONTENTS)
    victim.chmod(0o600)
    (folder / "tdreplay-link.slots").symlink_to(victim)
    os.mkfifo(folder / "tdreplay-pipe.slots", 0o600)
    (folder / "tdreplay-folder.slots").mkdir()
    for path in (
        victim,
        folder / "tdreplay-link.slots",
        folder / "tdreplay-pipe.slots",
        folder / "tdreplay-folder.slots",
        folder / ".." / "elsewhere" / victim.name,
        file("tdreplay-open.slots", mode=0o644),
        file("tdreplay-small.slots", contents=CONTENTS[:-1]),
        file("tdreplay-other.slots", contents=bytes(SIZE)),
        file("another-name"),
        f"{folder}/",
        folder / "tdreplay-..slots",
    ):
        check_refused(path)
    os.link(victim, folder / "tdreplay-hard.slots")
    check_refused(folder / "tdreplay-hard.slots")


@pytest.mark.parametrize(
    "wrong",
    [{"nonce": b""}, {"nonce": NONCE[:15]}, {"nonce": NONCE + b"x"}, {"slots": 0}, {"slots": -1}, {"slots": (1 << 63) - 1}]
    + [{"slot_bytes": size} for size in (0, -4096, -(1 << 63))],
)
def test_an_offer_with_impossible_numbers_is_none(memory, wrong):
    with pytest.raises(CodecError, match="offer"):
        MappedSegments(offered(memory(), **wrong))


@pytest.mark.parametrize("slot", [-1, 2, -(1 << 63), (1 << 63) - 1])
def test_a_slot_that_is_not_there_is_not_read(memory, slot):
    mapped = MappedSegments(offered(memory()))
    with pytest.raises(CodecError, match=rf"segment \({slot}\)"):
        mapped.block(slot)


def test_a_segment_cannot_be_lent_twice(memory):
    loans = SegmentLoans(MappedSegments(offered(memory())), BatchCredit(2, 2))
    block = loans.borrow(1)
    with pytest.raises(CodecError, match="twice"):
        loans.borrow(1)
    del block
    loans.borrow(1)


# -- over the wire -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def hostile_server(offer: SharedMemory, slot: int = 0) -> Iterator[str]:
    """The address of a server that makes an offer, and names that slot."""

    def describe(request: bytes, context: grpc.ServicerContext) -> bytes:
        return pb.DescribeResponse(buffer_size=10, storing_device="cpu").SerializeToString()

    def add_batch(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            asks = split(request, pb.AddBatchRequest)[0].shared_slots > 0
            yield (pb.AddBatchResponse(shared_memory=offer) if asks else pb.AddBatchResponse(rows=8)).SerializeToString()

    def sample(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield pb.SampleResponse(shared_memory=offer).SerializeToString()
        for _ in requests:
            yield pb.SampleResponse(slot=slot, batch_rows=1).SerializeToString()

    calls = {
        "Describe": grpc.unary_unary_rpc_method_handler(describe),
        "CreateTable": grpc.unary_unary_rpc_method_handler(lambda *_: b""),
        "AddBatch": grpc.stream_stream_rpc_method_handler(add_batch),
        "Sample": grpc.stream_stream_rpc_method_handler(sample),
    }
    with ThreadPoolExecutor(8) as workers:
        server = grpc.server(workers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tdreplay.v1.ReplayBufferService", calls),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


@pytest.mark.parametrize("nonce", [b"", b"These are 16 b.."])
def test_a_server_cannot_let_a_client_write_into_its_files(tmp_path, nonce):
    victim = tmp_path / "victim"
    before = b"These are 16 b.." + os.urandom(SIZE - 16)
    victim.write_bytes(before)
    batch = TensorDict({"x": torch.zeros(8, 100_000, dtype=torch.uint8)}, [8])
    with hostile_server(offered(victim, nonce=nonce)) as address, RemoteReplayBuffer(address, buffer_size=10, timeout=5) as buffer:
        with suppress(ReplayError):  # Either the offer is refused, or the rows go another way.
            buffer.add_batch(batch)
        with suppress(ReplayError), buffer.writer(flush_rows=8) as writer:
            writer.extend(batch)
        with suppress(ReplayError), buffer.stream(4) as batches:
            next(batches)
    assert victim.read_bytes() == before


@pytest.mark.parametrize("slot", [-1, 2, 1 << 62])
def test_a_server_cannot_name_a_slot_that_is_not_there(memory, slot):
    with hostile_server(offered(memory()), slot) as address, RemoteReplayBuffer(address, buffer_size=10, timeout=5) as buffer:
        with pytest.raises(CodecError, match=rf"segment \({slot}\)"), buffer.stream(4) as batches:
            next(batches)
