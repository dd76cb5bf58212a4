"""The rows that were ever inserted: a count that outlives resets, rewinds, restarts and checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from children import server_process
from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore


def counts(buffer: BaseReplayBuffer) -> tuple[int, int]:
    state = buffer.state()
    return state.insert_count, state.write_count


def changed(buffer: BaseReplayBuffer, path: Path) -> None:
    """Inserts 9 rows, with a reset and a rewind between them: 5 live rows, of the ids [10, 15)."""
    buffer.add_batch(rows(3))
    buffer.reset()
    buffer.add_batch(rows(4))
    buffer.save(path)
    buffer.add(rows(1)[0])
    buffer.load(path)
    buffer.add(rows(1, start=4)[0])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_survives_the_server(tmp_path, end):
    config = ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "data", buffer_size=10)
    with server_process(config) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
        changed(buffer, tmp_path / "then")
        assert counts(buffer) == (9, 15)
        os.kill(server.pid, end)
    with ReplayServer(config) as again, RemoteReplayBuffer(again.address) as buffer:
        assert counts(buffer) == (9, 15)
        buffer.add_batch(rows(2))
        assert counts(buffer) == (11, 17)


def test_a_checkpoint_has_it_and_so_have_restore_and_resize(tmp_path):
    with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "table") as buffer:
        changed(buffer, tmp_path / "then")
        made = buffer.checkpoint("one")
    restore(Path(made.path), tmp_path / "data", "restored")
    for size in (10, 3):
        if size != 10:
            resize(tmp_path / "data", "restored", size)
        with ReplayBuffer("cpu", "cpu", size, directory=tmp_path / "data" / "tables" / "restored") as buffer:
            assert counts(buffer) == (9, 15)
            assert numbers(buffer.sample_all())[-1] == 4 or size == 3
