"""Directories that older versions wrote: `tests/golden` has them, as they were left by a stop and by a kill."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from children import server_process
from conftest import files_under
from tdreplay.rate_limiters import Unlimited
from tdreplay.samplers import Uniform
from tdreplay.table_config import TableConfig
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.journal_format import FORMAT
from tdreplay_server.durability.journal_state import read_journal

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(params=["format-1/closed", "format-1/killed", "format-2/closed", "format-2/killed", "format-3/closed", "format-3/killed"])
def data(request, tmp_path: Path) -> Path:
    """A data directory of an older format. Its table 'golden' has 8 slots; 10 rows were inserted in five blocks, by writer-0 and writer-1 in turn."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "data"))


def config(data: Path) -> ServerConfig:
    return ServerConfig(address="127.0.0.1:0", data_dir=data)


def block(k: int) -> bytes:
    """The block of that number, from 0, of those that were inserted."""
    number = np.arange(2 * k, 2 * k + 2)
    return save({"number": number, "obs": np.stack([number, number + 0.5], 1).astype(np.float32)}, {"batch_shape": "[2]"})


def add(address: str, k: int) -> pb.AddResponse:
    with grpc.insecure_channel(address) as channel:
        request = pb.AddRequest(table="golden", writer_id=f"writer-{k % 2}", sequence=k // 2 + 1, block=block(k))
        return ReplayBufferServiceStub(channel).Add(request, timeout=10)


def user_version(data: Path) -> int:
    with closing(sqlite3.connect(data / "tables/golden/journal.sqlite")) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def test_an_older_directory_keeps_its_rows_and_writers(data):
    for more in range(2):
        with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
            state, stored = buffer.state(), buffer.sample_all()
            assert (state.size, state.write_count, state.insert_count) == (8, 10 + 2 * more, 10 + 2 * more)
            assert sorted(stored["number"].tolist()) == list(range(2 + 2 * more, 10 + 2 * more))
            assert (stored["obs"][:, 0] == stored["number"]).all()
            assert all(add(server.address, k).already_stored for k in range(5))
            assert not add(server.address, 5 + more).already_stored


def test_it_counts_inserts_from_then_on(data):
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
        buffer.reset()
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
        assert (buffer.state().write_count, buffer.state().insert_count) == (16, 10)


def test_a_directory_of_format_2_keeps_its_count_of_inserts_over_a_reset(tmp_path):
    """Its table 'golden' has 8 slots: 4 rows were inserted, the table was reset, and 10 more rows were inserted, as in the others."""
    data = Path(shutil.copytree(GOLDEN / "format-2" / "reset", tmp_path / "data"))
    for _ in range(2):
        with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
            state = buffer.state()
            assert (state.size, state.write_count, state.insert_count) == (8, 18, 14)
            assert sorted(buffer.sample_all()["number"].tolist()) == list(range(2, 10))
            assert all(add(server.address, k).already_stored for k in range(5))


def test_its_table_has_the_settings_that_every_table_had(data):
    with ReplayServer(config(data)):
        pass
    assert read_journal(data / "tables/golden").settings.config == TableConfig(8, "cpu", Uniform(), Unlimited(), 0)


def test_its_rows_get_an_id_of_their_generation_that_stays(data):
    ids = []
    for _ in range(2):
        with ReplayServer(config(data)) as server, grpc.insecure_channel(server.address) as channel:
            ids.append(ReplayBufferServiceStub(channel).Describe(pb.DescribeRequest(table="golden"), timeout=10).generation_id)
    assert len(ids[0]) == 16
    assert ids[0] == ids[1]


def test_a_checkpoint_of_format_1_can_be_restored(tmp_path):
    ring = restore(GOLDEN / "format-3/closed/checkpoints/golden/one", tmp_path / "data", "golden")
    assert (ring.oldest, ring.write_count) == (2, 10)
    assert read_journal(tmp_path / "data/tables/golden").settings.config == TableConfig(8, "cpu", Uniform(), Unlimited(), 0)


def test_its_table_can_be_resized(data):
    resize(data, "golden", 3)
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
        assert sorted(buffer.sample_all()["number"].tolist()) == [7, 8, 9]
        assert all(add(server.address, k).already_stored for k in range(5))


def test_verify_reads_it_and_changes_nothing(data):
    before = files_under(data)
    checkpoints = [*data.glob("checkpoints/golden/*")]
    _, line, *others = verified(data)
    assert "8 rows, ids [2, 10), buffer_size 8" in line
    assert ["8 rows" in other for other in others] == [True] * len(checkpoints)
    assert files_under(data) == before


def test_it_is_of_the_new_format_when_it_was_opened(data):
    with ReplayServer(config(data)):
        pass
    list(verified(data))
    assert user_version(data) == FORMAT


def test_a_kill_after_it_was_opened_leaves_one_of_the_new_format(data):
    with server_process(config(data)) as server:
        os.kill(server.pid, signal.SIGKILL)
    assert "8 rows, ids [2, 10)" in list(verified(data))[1]
    with ReplayServer(config(data)) as again:
        assert all(add(again.address, k).already_stored for k in range(5))
    assert user_version(data) == FORMAT
