"""The client where nothing of the server is installed, at the oldest and at the newest versions of what it needs: ``make floors``.

The server is a process of another environment: that of the interpreter $SERVER_PYTHON. Without it, that of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import EmptyTableError, SchemaError
from tdreplay.fields import DTYPES
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_client.cli import main

ALONE = find_spec("torchrl") is None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server."""
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "tdreplay_server", "serve", "--address", "127.0.0.1:0", "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[-1]
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture
def buffer(server: str, request: pytest.FixtureRequest) -> Iterator[RemoteReplayBuffer]:
    with RemoteReplayBuffer(server, table=request.node.name.partition("[")[0][:64], buffer_size=1000, timeout=30) as opened:
        yield opened


def transitions(n: int) -> TensorDict:
    """n rows that tell which they are."""
    number = torch.arange(n)
    following = TensorDict({"obs": number[:, None].float() + 1, "done": number % 2 == 0}, [n])
    return TensorDict({"obs": number[:, None].float(), "action": number, "next": following}, [n])


def test_every_dtype_comes_back(buffer):
    rows = TensorDict({str(dtype).removeprefix("torch."): torch.arange(2).to(dtype) for dtype in DTYPES.values()}, [2])
    buffer.add_batch(rows)
    read = buffer.sample_by_index([0, 1])
    for name, column in rows.items():
        assert read[name].dtype == column.dtype
        assert torch.equal(read[name].view(torch.uint8), column.view(torch.uint8)), name


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_large_batches_travel_both_ways(server, transport):
    rows = TensorDict({"image": torch.arange(64 * 40_000).view(64, 40_000).to(torch.int32)}, [64])
    with RemoteReplayBuffer(server, table=f"large-{transport}", buffer_size=64, timeout=60, transport=transport) as buffer:
        buffer.add_batch(rows)
        assert torch.equal(buffer.sample_all()["image"], rows["image"])
        with buffer.stream(32) as batches:
            batch = next(batches)
        assert torch.equal(batch["image"], rows["image"][batch["index"]])


def test_rows_are_written_one_by_one_and_read_in_every_way(buffer):
    with pytest.raises(EmptyTableError):
        buffer.sample_batch(1)
    with buffer.writer(flush_rows=16) as writer:
        for row in transitions(100):
            writer.append(row)
        writer.extend(transitions(20))
        writer.flush()
    assert len(buffer) == 120
    batch = buffer.sample_batch(50)
    assert (batch["next", "obs"][:, 0] == batch["action"] + 1).all()
    assert buffer.sample_by_index_fields([3, 5], ["next.obs"])["next", "obs"].flatten().tolist() == [4, 6]
    epochs = [torch.cat([batch["row_id"] for batch in buffer.create_epoch_iterator(32, shuffle=True, seed=5)]) for _ in range(2)]
    assert torch.equal(*epochs)
    assert epochs[0].unique().numel() == 120


def test_a_writer_takes_dicts_of_numbers_and_arrays(buffer):
    with buffer.writer() as writer:
        for step in range(10):
            writer.append({"obs": np.full(3, step, np.float32), "reward": 0.5, "done": False})
        writer.flush()
    assert buffer.sample_all()["reward"].tolist() == [0.5] * 10


def test_rows_of_another_schema_are_refused(buffer):
    buffer.add_batch(transitions(3))
    with pytest.raises(SchemaError, match="action"):
        buffer.add_batch(transitions(3).exclude("action"))


def test_a_loader_brings_batches(server, buffer):
    buffer.add_batch(transitions(10))
    dataset = ReplayDataset(server, 8, table="test_a_loader_brings_batches")
    assert next(iter(dataset.loader()))["obs"].shape == (8, 1)


def test_the_command_asks_for_health(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tdreplay", "health", "--address", server])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{server} SERVING\n")


@pytest.mark.skipif(not ALONE, reason="the server is installed too")
def test_the_server_s_command_says_what_to_install():
    done = subprocess.run([sys.executable, "-m", "tdreplay_server", "serve"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'tdreplay[server]'" in done.stderr
