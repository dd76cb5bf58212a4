"""Epochs over steps on a server: over restarts, in batches of several blocks, and with few anchors among many steps."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tdreplay_client import RemoteReplayBuffer, Sequences, Transitions
from tdreplay_server import ReplayServer, ServerConfig

WIDTH = 1 << 20


def steps(first: int, count: int, length: int, width: int = 1) -> dict[str, torch.Tensor]:
    """Steps of one actor, whose episodes have that length and end by termination without a final observation."""
    number = torch.arange(first, first + count)
    ends = {"terminated": number % length == length - 1, "truncated": torch.zeros(count, dtype=torch.bool)}
    obs = number.to(torch.uint8)[:, None].expand(count, width).contiguous()
    return {"obs": obs, "number": number, "reward": torch.ones(count), **ends}


def played(buffer: Any, first: int, count: int, length: int, width: int = 1) -> None:
    with buffer.trajectory_writer() as writer:
        writer.extend(steps(first, count, length, width))


def started(config: dict[str, Any]) -> ReplayServer:
    server = ReplayServer(ServerConfig(**config))
    server.start()
    return server


def test_each_anchor_comes_once_though_the_server_restarts_and_the_writer_goes_on(tmp_path):
    config = {"data_dir": tmp_path / "data", "address": f"unix:{tmp_path / 'server.sock'}"}
    server = started(config)
    with RemoteReplayBuffer(server.address, buffer_size=5000, trajectories=True, timeout=60) as buffer:
        played(buffer, 0, 1000, 10)
        batches, found = buffer.epochs(16, 2, shuffle=True, view=Transitions(n_step=3)), Counter[int]()
        for number, batch in enumerate(batches):
            found.update(batch["number"].tolist())
            if number % 40 == 20:
                server.stop()
                server = started(config)
                played(buffer, 1000 + number * 10, 50, 10)
        server.stop()
    assert found == dict.fromkeys(range(1000), 2)


@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_windows_of_a_large_batch_that_are_overwritten_on_its_way_are_left_out_or_replaced_and_none_is_torn(address, table, mode):
    with RemoteReplayBuffer(address, table=table, buffer_size=60, trajectories=True, transport="grpc", timeout=60) as buffer:
        played(buffer, 0, 60, 5, WIDTH)
        batches = buffer.epochs(60, on_overwrite=mode, view=Sequences(length=2, stride=2, burn_in=1))
        time.sleep(0.5)  # The server has sent what fits into the connection, and no more.
        writing = threading.Thread(target=lambda: [played(buffer, 60 + 5 * k, 5, 5, WIDTH) for k in range(6)])
        writing.start()
        came = list(batches)
        writing.join()
        for batch in came:
            there = batch["mask"]
            assert torch.equal(batch["obs"][there], batch["number"][there].to(torch.uint8)[:, None].expand(-1, WIDTH))
        anchors = np.concatenate([batch["row_id"][:, 0].numpy() for batch in came])
        assert len(set(anchors.tolist())) == len(anchors)
        assert batches.epoch == 1
        if mode == "skip":
            assert anchors.max() < 60


def test_two_anchors_among_two_million_steps_come_and_epochs_without_any_end(address, table):
    """Of all the episodes one is long enough. The server says that it is at work, so the client's time, which is short, is not over."""
    options: dict[str, Any] = {"table": table, "buffer_size": 3_000_000, "trajectories": True}
    with RemoteReplayBuffer(address, **options) as buffer, RemoteReplayBuffer(address, **options, timeout=1.0) as impatient:
        for start in range(0, 2_000_000, 100_000):
            played(buffer, start, 100_000, 10)
        played(buffer, 0, 12, 12)
        buffer.sample_batch(1)  # The steps are known from here on.
        batches = impatient.epochs(1000, 2, shuffle=True, seed=1, view=Sequences(length=11, padding="drop"))
        began = time.monotonic()
        assert [sorted(batch["row_id"][:, 0].tolist()) for batch in batches] == [[2_000_000, 2_000_001]] * 2
        print(f"two epochs of 2,000,012 steps with two anchors took {time.monotonic() - began:.2f} s")
        none = impatient.epochs(1, 1 << 40, shuffle=True, view=Sequences(length=13, padding="drop"))
        assert list(none) == []
        assert (none.epoch, none.overwritten) == (1 << 40, 0)
