"""What a table of trajectories is made with, and the columns of its steps, over all that becomes of a table: files, checkpoints, capacities."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from children import server_process
from tdreplay.system_fields import StepKind
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.journal_state import read_journal

STEPS = Trajectories(("done",), ("obs", "camera.left"), None)
CHOICES = {"steps": STEPS, "usual": Trajectories(), "plain": False}
EPISODE = 1 << 62
LAST = StepKind.TERMINATED | StepKind.FINAL_FOLLOWS


def config(data: Path) -> ServerConfig:
    return ServerConfig(address="127.0.0.1:0", data_dir=data)


def kinds(start: int, end: int) -> list[int]:
    """What the rows of these ids are: each episode has three steps and a final observation."""
    return [(StepKind.STEP, StepKind.STEP, LAST, StepKind.FINAL)[row_id % 4] for row_id in range(start, end)]


def add(address: str, start: int, end: int) -> None:
    """Inserts the rows of these ids, by one writer."""
    ids = np.arange(start, end)
    kind = np.array(kinds(start, end), np.uint8)
    columns = {
        "obs": ids.astype(np.float32),
        "camera.left": np.stack([ids, -ids], 1).astype(np.int16),
        "done": kind == LAST,
        "episode_id": EPISODE + ids // 4,
        "step": ids % 4,
        "step_kind": kind,
    }
    with grpc.insecure_channel(address) as channel:
        request = pb.AddRequest(table="steps", writer_id="one", sequence=start + 1, block=save(columns, {"batch_shape": f"[{len(ids)}]"}))
        ReplayBufferServiceStub(channel).Add(request, timeout=10)


def check(address: str, buffer_size: int, start: int, end: int) -> None:
    """The table says that it has trajectories, and the rows of these ids are in it with all that was said of them."""
    names = ("obs", "camera.left", "episode_id", "step", "step_kind", "row_id")
    with RemoteReplayBuffer(address, table="steps", trajectories=STEPS, timeout=10) as buffer:
        described = buffer.describe()
        assert (described.config.trajectories, described.config.buffer_size) == (STEPS, buffer_size)
        assert (described.size, described.write_count) == (end - start, end)
        ids = np.arange(start, end)
        rows = buffer.sample_by_index_fields(ids % buffer_size, names)
    assert rows["row_id"].tolist() == ids.tolist()
    assert rows["step_kind"].tolist() == kinds(start, end)
    assert rows["step"].tolist() == (ids % 4).tolist()
    assert rows["episode_id"].tolist() == (EPISODE + ids // 4).tolist()
    assert rows["obs"].tolist() == ids.tolist()
    assert rows["camera", "left"].tolist() == [[number, -number] for number in ids]


def in_journal(data: Path, table: str) -> object:
    """The setting, as the journal of a table that is closed has it."""
    with closing(sqlite3.connect(data / "tables" / table / "journal.sqlite")) as connection:
        ((text,),) = connection.execute("SELECT config FROM settings")
    return json.loads(text)["trajectories"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a table 'steps' of 12 slots and the rows 2 to 13, of four episodes, and its checkpoint 'one' of the rows 0 to 9."""
    with ReplayServer(config(tmp_path / "data")) as server:
        with RemoteReplayBuffer(server.address, table="steps", buffer_size=12, trajectories=STEPS, timeout=10) as buffer:
            add(server.address, 0, 10)
            buffer.checkpoint("one")
        add(server.address, 10, 14)
    return tmp_path / "data"


@pytest.mark.parametrize("choice", CHOICES)
def test_the_setting_is_in_the_journal_and_in_checkpoints(choice, tmp_path):
    with (
        ReplayServer(config(tmp_path / "data")) as server,
        RemoteReplayBuffer(server.address, table=choice, buffer_size=5, trajectories=CHOICES[choice], timeout=10) as buffer,
    ):
        path = Path(buffer.checkpoint("empty").path)
    expected = {
        "steps": {"ends": ["done"], "final_fields": ["obs", "camera.left"], "reward": None},
        "usual": {"ends": ["terminated", "truncated"], "final_fields": ["obs"], "reward": "reward"},
        "plain": False,
    }
    assert in_journal(tmp_path / "data", choice) == expected[choice]
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["trajectories"]) == (3, expected[choice])
    restore(path, tmp_path / "new", "other")
    assert read_journal(tmp_path / "new/tables/other").settings.config.trajectories == CHOICES[choice]


def test_a_table_of_steps_goes_on_after_a_restart(data):
    for _ in range(2):
        with ReplayServer(config(data)) as server:
            check(server.address, 12, 2, 14)
    with ReplayServer(config(data)) as server:
        add(server.address, 14, 17)
        check(server.address, 12, 5, 17)


def test_it_goes_on_after_a_kill(data):
    with server_process(config(data)) as server:
        add(server.address, 14, 17)
        os.kill(server.pid, signal.SIGKILL)
    with ReplayServer(config(data)) as again:
        check(again.address, 12, 5, 17)
        add(again.address, 17, 20)
        check(again.address, 12, 8, 20)


@pytest.mark.parametrize("buffer_size", [None, 4, 12, 30])
def test_a_reset_keeps_the_setting_and_takes_another_capacity(data, buffer_size):
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="steps", timeout=10) as buffer:
        buffer.reset(buffer_size)
        assert (buffer.size, buffer.describe().config.trajectories, buffer.buffer_size) == (0, STEPS, buffer_size or 12)
        start = buffer.state().write_count
        add(server.address, start, start + 4)
    with ReplayServer(config(data)) as server:
        check(server.address, buffer_size or 12, start, start + 4)


@pytest.mark.parametrize("buffer_size", [3, 7, 12, 50])
def test_a_restored_table_has_the_steps_of_the_checkpoints_moment(data, tmp_path, buffer_size):
    list(verified(data))
    restore(data / "checkpoints/steps/one", tmp_path / "new", "steps", buffer_size=buffer_size)
    list(verified(tmp_path / "new"))
    with ReplayServer(config(tmp_path / "new")) as server:
        check(server.address, buffer_size, max(0, 10 - buffer_size), 10)
        add(server.address, 10, 12)
        check(server.address, buffer_size, max(0, 12 - buffer_size), 12)


@pytest.mark.parametrize("buffer_size", [3, 7, 12, 50])
def test_a_resized_table_has_its_newest_steps(data, buffer_size):
    resize(data, "steps", buffer_size)
    with ReplayServer(config(data)) as server:
        check(server.address, buffer_size, max(2, 14 - buffer_size), 14)
