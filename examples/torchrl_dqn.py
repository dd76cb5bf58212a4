"""A prioritized DQN of TorchRL's pieces, with its replay buffer on a server: ``python -m examples.torchrl_dqn [ADDRESS]``.

TorchRL's collector, loss and schedulers work as with TorchRL's own prioritized buffer. The rows are on the server, with their priorities.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data.replay_buffers.scheduler import LinearScheduler
from torchrl.envs import GymEnv, set_exploration_type
from torchrl.envs.utils import ExplorationType
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate

from tdreplay_client import Prioritized, RemoteReplayBuffer
from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["evaluated", "served", "train"]

FRAMES = 6000
FRAMES_PER_BATCH = 100
UPDATES_PER_BATCH = 50
WARM_UP = 1000
EPISODES = 10


def train(address: str, frames: int = FRAMES, *, seed: int = 0, table: str = "dqn") -> float:
    """Trains on CartPole-v1, and gives the mean return of 10 greedy episodes: at most 500."""
    torch.manual_seed(seed)
    environment = GymEnv("CartPole-v1")
    actor = QValueActor(MLP(in_features=4, out_features=2, num_cells=[128, 128]), spec=environment.action_spec, in_keys=["observation"])
    exploration = EGreedyModule(environment.action_spec, eps_init=1.0, eps_end=0.05, annealing_num_steps=frames // 3)
    loss_module = DQNLoss(actor, action_space=environment.action_spec, delay_value=True, double_dqn=True)
    loss_module.make_value_estimator(gamma=0.99)
    target, optimizer = SoftUpdate(loss_module, tau=0.01), torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=frames, sampler=Prioritized(alpha=0.6), seed=seed)
    with buffer, RemoteTensorDictReplayBuffer(buffer, batch_size=128, beta=0.4) as replay:
        policy = TensorDictSequential(actor, exploration)
        collector = Collector(
            environment,
            policy,
            frames_per_batch=FRAMES_PER_BATCH,
            total_frames=frames,
            replay_buffer=replay,
            auto_register_policy_transforms=False,
        )
        collector.set_seed(seed)
        annealing = LinearScheduler(replay, param_name="beta", final_value=1.0, num_steps=frames // FRAMES_PER_BATCH)
        for _ in collector:  # The rows are in the buffer already.
            exploration.step(FRAMES_PER_BATCH)
            annealing.step()
            for _ in range(UPDATES_PER_BATCH if replay.write_count >= WARM_UP else 0):
                batch = replay.sample()
                optimizer.zero_grad()
                loss_module(batch)["loss"].backward()  # It weighs the rows by `priority_weight`, and writes `td_error`.
                optimizer.step()
                target.step()
                replay.update_tensordict_priority(batch)
        returns = evaluated(environment, actor)
        collector.shutdown()
    return returns


def evaluated(environment: GymEnv, actor: QValueActor) -> float:
    """The mean return of greedy episodes."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        episodes = [environment.rollout(500, actor)["next", "reward"].sum() for _ in range(EPISODES)]
    return float(torch.stack(episodes).mean())


@contextmanager
def served(address: str | None) -> Iterator[str]:
    """The address, or that of a server of this process."""
    if address is not None:
        yield address
        return
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        yield server.address


if __name__ == "__main__":
    torch.set_num_threads(1)  # The network is small: more threads would wait for each other.
    with served(sys.argv[1] if len(sys.argv) > 1 else None) as at:
        began = time.monotonic()
        print(f"mean return of {EPISODES} episodes: {train(at):.0f} of 500, after {FRAMES:,} frames and {time.monotonic() - began:.0f} s")
