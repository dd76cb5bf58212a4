"""TorchRL's collectors fill a table of a server, in this process and from several others."""

from __future__ import annotations

import time

import pytest
import torch
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import traj
from torchrl.envs import GymEnv, StepCounter, TransformedEnv

from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer

FRAMES = 40


def cartpole() -> TransformedEnv:
    return TransformedEnv(GymEnv("CartPole-v1"), StepCounter())


@pytest.fixture
def replay(address, table):
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=10_000, batch_size=32, wait=True) as made:
        yield made


def check_whole(batch) -> None:
    """Each row is a step of CartPole, whose number is counted on from one observation to the next."""
    assert (batch["next", "step_count"] == batch["step_count"] + 1).all()
    assert batch["action"].sum(-1).eq(1).all()
    assert batch["next", "observation"].shape == (len(batch), 4)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", [Collector, MultiSyncCollector])
def test_a_collector_fills_the_buffer(replay, kind):
    environments = cartpole if kind is Collector else [cartpole, cartpole]
    collector = kind(environments, None, frames_per_batch=FRAMES, total_frames=5 * FRAMES, replay_buffer=replay)
    assert list(collector) == [None] * 5, "the rows went into the buffer"
    collector.shutdown()
    assert replay.write_count >= 5 * FRAMES
    assert replay.write_count == len(replay)
    everything = replay[:]
    check_whole(everything)
    check_whole(replay.sample())
    workers = 1 if kind is Collector else 2
    assert len({tuple(first) for first in everything["observation"][everything["step_count"][:, 0] == 0].tolist()}) >= workers


@pytest.mark.timeout(180)
def test_a_collector_that_runs_by_itself_is_read_while_it_writes(replay):
    collector = MultiAsyncCollector([cartpole, cartpole], None, frames_per_batch=FRAMES, total_frames=-1, replay_buffer=replay)
    collector.start()
    check_whole(replay.sample())  # It waits for the first rows.
    before, deadline = replay.write_count, time.monotonic() + 60
    while replay.write_count < before + 4 * FRAMES:
        assert time.monotonic() < deadline
        check_whole(replay.sample())
    assert collector.getattr_rb("write_count") >= before + 4 * FRAMES
    collector.async_shutdown()


def test_whole_trajectories_are_found_again(replay):
    collector = Collector(cartpole, None, frames_per_batch=200, total_frames=800, replay_buffer=replay, trajs_per_batch=2)
    for _ in collector:
        pass
    collector.shutdown()
    found = replay.query(traj.length >= 5, trajectory_key=("collector", "traj_ids"))
    assert len(found) > 2
    for one in found:
        assert torch.equal(one.step_count[:, 0], torch.arange(len(one.step_count)))
