"""Batches through shared memory: the same batches, for clients on the server's host, and gRPC for all others."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from relay import relayed
from tensordict import TensorDict

from children import server_process
from conftest import rows
from tdreplay.errors import InvalidArgumentError, SchemaError
from tdreplay.v1.replay_buffer_pb2 import AddBatchRequest, SampleRequest
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

N, WIDTH = 64, 64 << 10


@pytest.fixture
def big(address, table):
    """A table of 64 rows of 64 KiB, each of which says which it is."""
    with RemoteReplayBuffer(address, table=table, buffer_size=N, timeout=10) as buffer:
        number = torch.arange(N)
        buffer.add_batch(TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(N, WIDTH)}, [N]))
        yield buffer


@pytest.fixture
def stub(address) -> Iterator[ReplayBufferServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield ReplayBufferServiceStub(channel)


def assert_refused(answers: Iterator[object], words: str) -> None:
    """The call ends here, because an argument is none."""
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in raised.value.details()


def shared_files() -> set[str]:
    """The shared memory that is mapped in this process, which has the client and the server: the inodes of its anonymous files."""
    maps = (line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:tdreplay" in line)
    return {inode for _, _, _, _, inode, *_ in maps}


def check(batch: TensorDict) -> list[int]:
    assert torch.equal(batch["x"], batch["n"].to(torch.uint8).unsqueeze(1).expand(len(batch), WIDTH))
    assert torch.equal(batch["index"], batch["n"])
    return batch["n"].tolist()


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_large_batches_of_a_stream_come_through_shared_memory(big, prefetch):
    with big.stream(16, prefetch=prefetch) as batches:
        assert batches.shared
        drawn = [number for _ in range(40) for number in check(next(batches))]
    assert len(set(drawn)) > N - 10  # Of 640 draws of 64 rows: that ten are missed by chance does not happen.


def test_an_epoch_comes_through_shared_memory_in_order(big):
    batches = big.create_epoch_iterator(10, 3)
    assert batches.shared
    assert [check(batch) for batch in batches] == [list(range(start, min(start + 10, N))) for _ in range(3) for start in range(0, N, 10)]


def numbered(first: int, count: int) -> TensorDict:
    number = torch.arange(first, first + count)
    return TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(count, WIDTH)}, [count])


def read_back(buffer: RemoteReplayBuffer) -> list[int]:
    """Which rows a buffer holds, in the order in which they came."""
    batch = buffer.sample_all()
    assert torch.equal(batch["x"], batch["n"].to(torch.uint8).unsqueeze(1).expand(len(batch), WIDTH))
    return batch["n"][batch["row_id"].argsort()].tolist()


@pytest.mark.parametrize("count", [4, 32, 33, 200])
def test_inserts_go_through_shared_memory_and_come_back_whole(address, table, count):
    with relayed(address) as relay, RemoteReplayBuffer(relay.address, table=table, buffer_size=1000, timeout=10) as buffer:
        for first in range(0, 3 * count, count):
            buffer.add_batch(numbered(first, count))
        assert relay.sent < 3 * count * WIDTH / 10
        assert read_back(buffer) == list(range(3 * count))


def test_larger_batches_than_the_first_get_larger_slots_and_small_rows_none(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=10) as buffer:
        for first, count in ((0, 1), (1, 5), (6, 64), (70, 1)):
            buffer.add_batch(numbered(first, count))
        assert read_back(buffer) == list(range(71))


def test_batches_after_single_rows_still_go_through_shared_memory(address, table):
    with relayed(address) as relay, RemoteReplayBuffer(relay.address, table=table, buffer_size=1000, timeout=10) as buffer:
        with buffer.writer(flush_rows=8) as writer:
            for row in numbered(0, 8):
                writer.append(row)
            writer.flush()
            before = relay.sent
            writer.extend(numbered(8, 300))
            writer.flush()
            assert relay.sent - before < 300 * WIDTH / 100
        assert read_back(buffer) == list(range(308))


@pytest.mark.parametrize("flush_rows", [1, 7, 64, 1000])
def test_a_writer_writes_into_shared_memory(address, table, flush_rows):
    with RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=10) as buffer:
        batch = numbered(0, 300)
        with buffer.writer(flush_rows=flush_rows, max_in_flight=3) as writer:
            for number in range(100):
                writer.append({"n": number, "x": batch["x"][number]})
            assert writer.shared == (flush_rows > 1)  # A row is 64 KiB: too little to share.
            writer.extend(batch[100:290])
            for number in range(290, 300):  # Cut short by the end of the writer.
                writer.append({"n": number, "x": batch["x"][number]})
        assert read_back(buffer) == list(range(300))


def test_what_is_written_after_an_insert_does_not_change_the_rows(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, timeout=10) as buffer:
        batch = numbered(0, 64).clone()
        buffer.add_batch(batch)
        batch["x"].fill_(255)
        buffer.add_batch(numbered(64, 10))
        assert read_back(buffer) == list(range(74))


def test_rows_that_were_not_stored_come_back_from_shared_memory(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=100, timeout=10) as buffer:
        buffer.add_batch(rows(3))
        writer = buffer.writer(max_in_flight=2)
        with pytest.raises(SchemaError) as raised:
            extend_until_it_fails(writer)
        assert writer.shared
        returned = raised.value.rows
        assert returned["n"].tolist() == list(range(len(returned)))
        assert torch.equal(returned["x"], returned["n"].to(torch.uint8).unsqueeze(1).expand(len(returned), WIDTH))


def extend_until_it_fails(writer) -> None:
    for first in range(0, 10_000, 16):
        writer.extend(numbered(first, 16))


@pytest.mark.parametrize("request_", [{"slot": 0}, {"shared_slots": 1, "slot_bytes": -1}])
def test_a_slot_that_was_not_offered_is_refused(stub, big, request_):
    answers = stub.AddBatch(iter([AddBatchRequest(table=big.table, **request_)]), timeout=10)
    assert_refused(answers, "slot")


@pytest.mark.parametrize("slot", [-1, 2, 1 << 40])
def test_a_slot_out_of_range_is_refused(stub, big, slot):
    requests = [AddBatchRequest(table=big.table, shared_slots=2, slot_bytes=1 << 20), AddBatchRequest(slot=slot)]
    answers = stub.AddBatch(iter(requests), timeout=10)
    assert next(answers).shared_memory.slots == 2
    assert_refused(answers, f"slot ({slot}")


def test_a_call_goes_on_when_the_table_gets_larger_rows(big):
    before = shared_files()
    for _ in range(3):
        check(big.sample_batch(16))
    held = shared_files() - before
    assert held
    big.reset()
    big.add_batch(TensorDict({"x": torch.full((8, 1 << 20), 9, dtype=torch.uint8)}, [8]))
    before = shared_files()
    batch = big.sample_batch(16)
    assert (batch["x"] == 9).all()
    assert batch["x"].shape == (16, 1 << 20)
    assert held <= shared_files() <= before


def test_batches_from_shared_memory_are_the_clients_own(big):
    with big.stream(16, prefetch=2) as batches:
        taken = [next(batches) for _ in range(6)]
        kept = [batch.clone() for batch in taken]
        for batch in taken[::2]:
            for leaf in batch.values(include_nested=True, leaves_only=True):
                leaf.fill_(77)
        for _ in range(6):
            check(next(batches))
    assert all((batch == copy).all() for batch, copy in zip(taken[1::2], kept[1::2], strict=True))
    for batch in kept:
        check(batch)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_a_user_may_keep_as_many_batches_as_it_likes(big, prefetch):
    with big.stream(16, prefetch=prefetch) as batches:
        kept = [next(batches) for _ in range(40)]
        drawn = [check(batch) for batch in kept]
        for batch in kept[::3]:
            batch["x"].zero_()
        assert [batch["n"].tolist() for batch in kept] == drawn
        for batch in kept[1::3]:
            check(batch)
        kept.clear()
        for _ in range(40):
            check(next(batches))
    single = [big.sample_batch(16) for _ in range(20)]
    for batch in single:
        check(batch)


def test_batches_are_lent_and_their_memory_is_used_again(big):
    with big.stream(16, prefetch=2) as batches:
        places = set()
        for _ in range(50):
            batch = next(batches)
            places.add(batch["x"].data_ptr())
            check(batch)
        assert len(places) <= 10
    check(batch)  # It outlives its stream.


def test_a_slot_that_was_not_lent_cannot_be_released(stub, big):
    for slots in ([0], [-1], [9]):
        requests = [SampleRequest(table=big.table, batch_size=16, shared_slots=2), SampleRequest(credits=1, released_slots=slots)]
        answers = stub.Sample(iter(requests), timeout=10)
        next(answers)
        assert_refused(answers, "released_slots")


def test_batches_go_on_to_the_training_device(address, table, big):
    with RemoteReplayBuffer(address, table=table, device="meta") as buffer, buffer.stream(16) as batches:
        assert batches.shared
        assert next(batches)["x"].device == torch.device("meta")


def test_small_batches_and_those_over_grpc_come_in_messages(address, table, big):
    with big.stream(1) as batches:
        assert not batches.shared
        check(next(batches))
    with RemoteReplayBuffer(address, table=table, transport="grpc") as buffer, buffer.stream(16) as batches:
        assert not batches.shared
        check(next(batches))


def test_a_batch_that_is_too_large_to_share_comes_in_messages(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=2, timeout=10) as buffer:
        buffer.add_batch(TensorDict({"x": torch.ones(2, 40 << 20, dtype=torch.uint8)}, [2]))
        with buffer.stream(2, prefetch=1) as batches:
            assert not batches.shared
            assert next(batches)["x"].all()


def test_a_client_that_cannot_map_the_memory_goes_on_over_grpc_and_says_so_once(address, table, big):
    program = f"""
import os, resource
from tdreplay_client import RemoteReplayBuffer
buffer = RemoteReplayBuffer({address!r}, table={table!r}, timeout=10)
buffer.sample_batch(1)
limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
usual = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, usual[1]))
while True:  # Fill the gaps, so that no file can be opened any more.
    try:
        os.dup(0)
    except OSError:
        break
with buffer.stream(16) as batches:
    assert not batches.shared
    next(batches)
resource.setrlimit(resource.RLIMIT_NOFILE, usual)
for _ in range(3):
    with buffer.stream(16) as batches:
        assert not batches.shared
        batch = next(batches)
        assert (batch["x"][:, 0] == batch["n"]).all()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("batches travel over gRPC") == 1


def test_memory_is_given_back_when_a_stream_ends(big):
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:tdreplay")

    gc.collect()
    before = maps()
    for _ in range(5):
        with big.stream(16) as batches:
            check(next(batches))
            assert maps() > before
        del batches
    deadline = time.monotonic() + 10
    while maps() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # The threads of the last stream end when they notice.
    assert maps() <= before


def test_an_unknown_transport_is_refused(address):
    with pytest.raises(InvalidArgumentError, match="transport"):
        RemoteReplayBuffer(address, transport="pigeon")


def test_rows_of_small_tables_still_stream(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, transport="shared_memory") as buffer:
        buffer.add_batch(rows(10))
        with buffer.stream(4) as batches:
            assert len(next(batches)) == 4
    assert os.listdir("/dev/shm") == [name for name in os.listdir("/dev/shm") if "tdreplay" not in name]


# -- in a folder that containers share ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One of which server and client were told."""
    monkeypatch.setenv("TDREPLAY_SHARED_MEMORY_DIR", str(tmp_path))
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("tdreplay-*"))


def test_in_a_folder_both_ways_go_through_files_that_are_gone_after_the_calls(folder):
    config = ServerConfig(address="127.0.0.1:0", shared_memory_dir=folder)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, buffer_size=N, timeout=10) as buffer:
        buffer.add_batch(numbered(0, N))
        assert len(files(folder)) == 1
        with buffer.stream(16) as batches:
            assert batches.shared
            assert set(numbers_of(batches, 20)) <= set(range(N))
            assert {file.stat().st_mode & 0o777 for file in files(folder)} == {0o600}
            assert len(files(folder)) == 2
    assert files(folder) == []


def test_a_client_that_was_not_told_of_the_folder_takes_messages(tmp_path):
    config = ServerConfig(address="127.0.0.1:0", shared_memory_dir=tmp_path)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, buffer_size=N, timeout=10) as buffer:
        buffer.add_batch(numbered(0, N))
        with buffer.stream(16) as batches:
            assert not batches.shared
            assert set(numbers_of(batches, 20)) <= set(range(N))


def test_a_client_finds_the_folder_where_it_has_it(tmp_path, monkeypatch):
    (tmp_path / "servers").mkdir()
    (tmp_path / "clients").symlink_to(tmp_path / "servers")
    monkeypatch.setenv("TDREPLAY_SHARED_MEMORY_DIR", str(tmp_path / "clients"))
    config = ServerConfig(address="127.0.0.1:0", shared_memory_dir=tmp_path / "servers")
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, buffer_size=N, timeout=10) as buffer:
        buffer.add_batch(numbered(0, N))
        with buffer.stream(16) as batches:
            assert batches.shared


def test_the_folder_may_begin_with_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TDREPLAY_SHARED_MEMORY_DIR", "~")
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server, RemoteReplayBuffer(server.address, buffer_size=N, timeout=10) as buffer:
        buffer.add_batch(numbered(0, N))
        with buffer.stream(16) as batches:
            assert batches.shared
            assert len(files(tmp_path)) == 2


def numbers_of(batches, count: int) -> list[int]:
    return [number for _ in range(count) for number in next(batches)["n"].tolist()]


@pytest.mark.timeout(60)
def test_what_is_no_file_of_a_server_is_left_alone_in_the_folder(tmp_path):
    names = {kind: tmp_path / f"tdreplay-{kind}.slots" for kind in ("pipe", "folder", "socket", "link", "broken")}
    (tmp_path / "file").write_bytes(b"kept")
    os.mkfifo(names["pipe"])
    names["folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(names["socket"]))
    names["link"].symlink_to(tmp_path / "file")
    names["broken"].symlink_to(tmp_path / "nowhere")
    (tmp_path / "tdreplay-left.slots").write_bytes(b"")
    with ReplayServer(ServerConfig(address="127.0.0.1:0", shared_memory_dir=tmp_path)):
        assert files(tmp_path) == sorted(names.values())
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_what_a_killed_server_left_in_the_folder_is_removed_and_what_another_one_uses_is_not(folder):
    with ReplayServer(ServerConfig(address="127.0.0.1:0", shared_memory_dir=folder)) as living:
        with server_process(ServerConfig(address="127.0.0.1:0", shared_memory_dir=folder)) as killed:
            with RemoteReplayBuffer(killed.address, buffer_size=N, timeout=1) as buffer:
                buffer.add_batch(numbered(0, N))
                (left,) = files(folder)
                os.kill(killed.pid, signal.SIGKILL)
        with RemoteReplayBuffer(living.address, buffer_size=N, timeout=10) as buffer:
            buffer.add_batch(numbered(0, N))
            (used,) = set(files(folder)) - {left}
            with ReplayServer(ServerConfig(address="127.0.0.1:0", shared_memory_dir=folder)):
                assert files(folder) == [used]


def test_where_the_folder_is_gone_batches_travel_in_messages(folder):
    config = ServerConfig(address="127.0.0.1:0", shared_memory_dir=folder)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, buffer_size=N, timeout=10) as buffer:
        shutil.rmtree(folder)
        buffer.add_batch(numbered(0, N))
        with buffer.stream(16) as batches:
            assert not batches.shared
            assert set(numbers_of(batches, 20)) <= set(range(N))


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder that this process can write to"):
        ServerConfig(shared_memory_dir=tmp_path / "nowhere")


def test_an_empty_folder_is_none():
    assert ServerConfig(shared_memory_dir="").shared_memory_dir is None
