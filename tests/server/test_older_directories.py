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
from tdreplay.errors import TableExistsError
from tdreplay.rate_limiters import SamplesPerInsert, Unlimited
from tdreplay.samplers import Prioritized, Uniform
from tdreplay.table_config import TableConfig
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.journal_format import FORMAT
from tdreplay_server.durability.journal_state import read_journal

GOLDEN = Path(__file__).parent.parent / "golden"


FORMATS = [f"format-{number}/{end}" for number in range(1, 5) for end in ("closed", "killed")]
PRIORITIES = {2: 3.0, 3: 40.0, 4: 5.0, 5: 6.0, 6: 7.0, 7: 0.25, 8: 9.0, 9: 10.0}
"""Row id -> priority, in the tables 'weighted'."""


@pytest.fixture(params=FORMATS)
def data(request, tmp_path: Path) -> Path:
    """A data directory of an older format. Its table 'golden' has 8 slots; 10 rows were inserted in five blocks, by writer-0 and writer-1 in turn."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "data"))


@pytest.fixture(params=["closed", "killed"])
def weighted(request, tmp_path: Path) -> Path:
    """A data directory of format 4. Its table 'weighted' has the same rows, row k with a priority of k + 1, but for rows 3 and 7."""
    return Path(shutil.copytree(GOLDEN / "format-4" / request.param, tmp_path / "data"))


def config(data: Path) -> ServerConfig:
    return ServerConfig(address="127.0.0.1:0", data_dir=data)


def block(k: int, *, priorities: bool = False) -> bytes:
    """The block of that number, from 0, of those that were inserted."""
    number = np.arange(2 * k, 2 * k + 2)
    fields = {"number": number, "obs": np.stack([number, number + 0.5], 1).astype(np.float32)}
    return save(fields | ({"priority": number + 1.0} if priorities else {}), {"batch_shape": "[2]"})


def add(address: str, k: int, table: str = "golden", *, priorities: bool = False) -> pb.AddResponse:
    with grpc.insecure_channel(address) as channel:
        number = {"writer_id": f"writer-{k % 2}", "sequence": k // 2 + 1}
        request = pb.AddRequest(table=table, block=block(k, priorities=priorities), has_priorities=priorities, **number)
        return ReplayBufferServiceStub(channel).Add(request, timeout=10)


def drawn_priorities(buffer: RemoteReplayBuffer) -> dict[int, float]:
    """Row id -> priority, of the rows of a large batch."""
    batch = buffer.sample_batch(500, seed=1)
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


def user_version(data: Path, table: str = "golden") -> int:
    with closing(sqlite3.connect(data / "tables" / table / "journal.sqlite")) as connection:
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
    assert read_journal(data / "tables/golden").settings.config == TableConfig(8, "cpu", Uniform(), Unlimited(), 0, False)


def test_a_table_of_format_4_keeps_its_settings_priorities_counts_and_writers(weighted):
    settings = TableConfig(8, "cpu", Prioritized(0.5), SamplesPerInsert(4.0, 2, 1000.0), 0, False, name="weighted")
    for more in range(2):
        with ReplayServer(config(weighted)) as server, RemoteReplayBuffer(server.address, table="weighted") as buffer:
            described = buffer.describe()
            assert described.config == settings
            assert described.trajectories is None
            assert described.sample_count == 12 + more * 500
            assert sorted(buffer.sample_all()["number"].tolist()) == list(range(2 + 2 * more, 10 + 2 * more))
            assert all(add(server.address, k, "weighted", priorities=True).already_stored for k in range(5))
            new = {10: 40.0, 11: 40.0} if more else {}  # The highest priority that the table has seen.
            assert drawn_priorities(buffer) == {row_id: one for row_id, one in PRIORITIES.items() if row_id >= 2 + 2 * more} | new
            assert not add(server.address, 5 + more, "weighted").already_stored
    assert user_version(weighted, "weighted") == FORMAT


def test_an_older_table_is_no_table_of_trajectories(weighted):
    with ReplayServer(config(weighted)) as server:
        with pytest.raises(TableExistsError, match="trajectories False, not Trajectories"):
            RemoteReplayBuffer(server.address, table="weighted", buffer_size=8, trajectories=True)
        with RemoteReplayBuffer(server.address, table="steps", buffer_size=8, trajectories=True) as buffer:
            assert buffer.describe().config.trajectories == Trajectories()
    assert read_journal(weighted / "tables/steps").settings.config.trajectories == Trajectories()


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


@pytest.mark.parametrize("buffer_size", [8, 5, 20])
def test_a_checkpoint_of_format_2_can_be_restored_with_its_priorities_and_writers(buffer_size, tmp_path):
    ring = restore(GOLDEN / "format-4/closed/checkpoints/weighted/one", tmp_path / "data", "weighted", buffer_size=buffer_size)
    assert (ring.oldest, ring.write_count) == (max(2, 10 - buffer_size), 10)
    with ReplayServer(config(tmp_path / "data")) as server, RemoteReplayBuffer(server.address, table="weighted") as buffer:
        described = buffer.describe()
        assert (described.config.sampler, described.config.trajectories, described.sample_count) == (Prioritized(0.5), False, 12)
        assert drawn_priorities(buffer) == {row_id: one for row_id, one in PRIORITIES.items() if row_id >= ring.oldest}
        assert all(add(server.address, k, "weighted", priorities=True).already_stored for k in range(5))


def test_its_table_can_be_resized(data):
    resize(data, "golden", 3)
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="golden") as buffer:
        assert sorted(buffer.sample_all()["number"].tolist()) == [7, 8, 9]
        assert all(add(server.address, k).already_stored for k in range(5))


def test_verify_reads_it_and_changes_nothing(data):
    before = files_under(data)
    _, *lines = verified(data)
    assert [("8 rows, ids [2, 10), buffer_size 8" in line) for line in lines] == [True] * len(
        [*data.glob("*/*/journal.sqlite"), *data.glob("checkpoints/*/*")]
    )
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
