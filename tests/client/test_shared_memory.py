"""Batches through shared memory: the same batches, for clients on the server's host, and gRPC for all others."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from conftest import rows
from tdreplay.errors import InvalidArgumentError
from tdreplay.v1.replay_buffer_pb2 import SharedMemory
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.shared_memory import MappedSlots

N, WIDTH = 64, 64 << 10


@pytest.fixture
def big(address, table):
    """A table of 64 rows of 64 KiB, each of which says which it is."""
    with RemoteReplayBuffer(address, table=table, buffer_size=N, timeout=10) as buffer:
        number = torch.arange(N)
        buffer.add_batch(TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(N, WIDTH)}, [N]))
        yield buffer


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


def test_a_file_that_is_not_the_servers_is_not_mapped(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(4096 + 8192))
    good = {"path": str(file), "nonce": bytes(16), "slots": 2, "slot_bytes": 4096}
    MappedSlots(SharedMemory(**good))
    for wrong in ({"nonce": b"x" * 16}, {"slots": 3}, {"path": "/proc/1/fd/999999"}):
        with pytest.raises(OSError, match=r"not|No such"):
            MappedSlots(SharedMemory(**{**good, **wrong}))


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
