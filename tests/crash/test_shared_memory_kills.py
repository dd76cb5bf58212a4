"""SIGKILL on either side of shared memory: nothing is left in /dev/shm, no stream permit is lost, and memory does not grow.

TDREPLAY_KILLS says how often; ``make crash`` takes 200.
"""

from __future__ import annotations

import os
import random
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from tensordict import TensorDict

from children import child_of, server_process
from tdreplay.errors import ReplayError, StreamLimitError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

KILLS = int(os.environ.get("TDREPLAY_KILLS", "10"))
ROW = 64 << 10
pytestmark = pytest.mark.timeout(60 + 10 * KILLS)


def read(address: str) -> None:
    """In the child: a reader."""
    with RemoteReplayBuffer(address, timeout=10) as buffer, buffer.stream(64, prefetch=4) as batches:
        assert batches.shared
        next(batches)
        print("reads", flush=True)
        for batch in batches:
            assert bool((batch["x"] == batch["x"][:, :1]).all())


def insert(address: str) -> None:
    """In the child: an inserter."""
    with RemoteReplayBuffer(address, timeout=10) as buffer, buffer.writer() as writer:
        batch = filling()
        writer.extend(batch)
        writer.flush()
        assert writer.shared
        print("inserts", flush=True)
        while True:
            writer.extend(batch)


def serve(data_dir: str) -> None:
    """In the child: a server."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=256, data_dir=data_dir)) as server:
        print(server.address, flush=True)
        server.wait()


def filling(rows: int = 256) -> TensorDict:
    return TensorDict({"x": torch.arange(rows).to(torch.uint8).unsqueeze(1).expand(rows, ROW)}, [rows])


def shared_maps(pid: int) -> list[str]:
    """The shared memory that a process still maps or holds open."""
    maps = re.findall(r".*memfd:tdreplay.*", Path(f"/proc/{pid}/maps").read_text())
    return maps + [link for fd in Path(f"/proc/{pid}/fd").iterdir() if "memfd:tdreplay" in (link := target(fd))]


def target(fd: Path) -> str:
    with suppress(FileNotFoundError):  # It was closed since it was listed.
        return os.readlink(fd)
    return ""


@pytest.mark.parametrize("work", [read, insert], ids=["reader", "inserter"])
def test_a_killed_client_leaves_nothing_behind(work):
    files = set(os.listdir("/dev/shm"))
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=256, max_workers=4, max_streams=1)) as server:
        with RemoteReplayBuffer(server.address, timeout=10, transport="grpc") as buffer:
            buffer.add_batch(filling())
            memory = []
            for _ in range(KILLS):
                with child_of(work, server.address) as child:
                    time.sleep(random.uniform(0, 0.05))
                    child.kill()
                # Before the slot is free, the server still has the memory that it shared with the client: 16 MiB.
                until_there_is_a_slot(buffer)
                memory.append(psutil.Process(server.pid).memory_full_info().uss)
            assert eventually_none(lambda: shared_maps(server.pid)) == []
            print(f"{KILLS} clients killed; the server took {memory[-1] - memory[len(memory) // 3]} bytes more at the end than after a third of them")
            assert memory[-1] - memory[len(memory) // 3] < 16 << 20
            stored = buffer.sample_all()  # Whoever was killed while it inserted: no row is half of one block and half of another.
            assert (stored["x"] == stored["x"][:, :1]).all()
    assert_that_they_go(set(os.listdir("/dev/shm")) - files)


def until_there_is_a_slot(buffer: RemoteReplayBuffer) -> None:
    """Waits until the one stream permit is free again, and takes a batch through it."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with buffer.stream(8) as batches:
                next(batches)
            return
        except StreamLimitError:
            assert time.monotonic() < deadline, "a stream permit is lost"


def eventually_none(look, seconds: float = 10.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def assert_that_they_go(files: set[str]) -> None:
    """Files in /dev/shm that were not there before: those of others, who work beside this test, are gone some time later."""
    deadline = time.monotonic() + 60
    while files := files & set(os.listdir("/dev/shm")):
        assert time.monotonic() < deadline, files
        time.sleep(0.1)


def insert_a_batch_for_each(batches, buffer) -> None:
    for _ in batches:
        buffer.add_batch(filling(64))


def test_a_killed_server_leaves_nothing_behind(tmp_path):
    before = set(shared_maps(os.getpid()))
    files = set(os.listdir("/dev/shm"))
    for number in range(KILLS):
        with child_of(serve, str(tmp_path / str(number))) as child, RemoteReplayBuffer(child.line, timeout=2) as buffer:
            buffer.add_batch(filling())
            with buffer.stream(64, prefetch=4) as batches:
                assert batches.shared
                taken = next(batches)
                time.sleep(random.uniform(0, 0.02))
                child.kill()
                with pytest.raises(ReplayError):
                    insert_a_batch_for_each(batches, buffer)
            assert (taken["x"] == taken["x"][:, :1]).all()  # It is the client's own: the server's death takes nothing away.
        del batches, taken
    assert eventually_none(lambda: sorted(set(shared_maps(os.getpid())) - before)) == []
    assert_that_they_go(set(os.listdir("/dev/shm")) - files)
