"""A disk that fails: whoever is told may close what failed, and is told once."""

from __future__ import annotations

import queue
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import ClosedError, ReplayError, StorageError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig

ROW = TensorDict({"x": torch.zeros(())}, [])


@contextmanager
def small_files() -> Iterator[None]:
    """The disk fails (EFBIG) where a file would grow beyond 8 KiB, as the journal does after some inserts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail(buffer: ReplayBuffer | RemoteReplayBuffer) -> None:
    with small_files(), suppress(StorageError):
        for _ in range(100):
            buffer.add(ROW)
        pytest.fail("the disk did not fail")


@pytest.mark.parametrize("durability", ["process", "power", "interval:0.05"])
def test_the_callback_may_close_the_buffer_and_is_called_once(tmp_path: Path, durability: str):
    told: queue.SimpleQueue[StorageError] = queue.SimpleQueue()
    closed = threading.Event()

    def close(error: StorageError) -> None:
        told.put(error)
        buffer.close()
        closed.set()

    buffer = ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "table", durability=durability, on_failure=close)
    buffer.add(ROW)
    fail(buffer)
    assert closed.wait(10)
    with pytest.raises((StorageError, ClosedError)):
        buffer.add(ROW)
    assert "cannot be written" in str(told.get(timeout=10))
    assert told.empty()


def test_the_callback_may_stop_the_server_and_is_called_once_for_all_tables(tmp_path: Path):
    told: queue.SimpleQueue[StorageError | None] = queue.SimpleQueue()

    def stop() -> None:
        told.put(server.failure)
        both_failed.wait(10)
        server.stop()
        told.put(None)

    both_failed = threading.Event()
    server = ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path, grace_seconds=1), on_failure=stop).start()
    with RemoteReplayBuffer(server.address, table="a", buffer_size=10) as a, RemoteReplayBuffer(server.address, table="b", buffer_size=10) as b:
        for buffer in (a, b):
            buffer.add(ROW)
        for buffer in (a, b):
            fail(buffer)
        both_failed.set()
        assert isinstance(told.get(timeout=10), StorageError)
        assert told.get(timeout=20) is None
        with pytest.raises(ReplayError):
            RemoteReplayBuffer(server.address, timeout=0.5)
    assert told.empty()


def test_rows_are_flushed_while_the_first_ones_make_their_files(tmp_path: Path):
    """The flusher's thread would end with an error, and nothing be flushed any more: pytest fails for it."""
    row = TensorDict({f"field-{n}": torch.zeros(()) for n in range(80)}, [])
    for number in range(4):
        with ReplayBuffer("cpu", "cpu", 4, directory=tmp_path / str(number), durability="interval:0.01") as buffer:
            buffer.add(row)
            buffer.reset()
            buffer.add(row)
            time.sleep(0.03)
            assert "tdreplay-flusher" in {thread.name for thread in threading.enumerate()}
