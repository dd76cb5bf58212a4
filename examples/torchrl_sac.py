"""An asynchronous SAC of TorchRL's pieces, with its replay buffer on a server: ``python -m examples.torchrl_sac [ADDRESS]``.

Two actors write into the table while the learner reads from it, and neither waits for the other. Now and then the actors get the learner's weights.
"""

from __future__ import annotations

import sys
import time

import torch
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.collectors import MultiAsyncCollector
from torchrl.envs import GymEnv, RewardScaling, TransformedEnv, set_exploration_type
from torchrl.envs.utils import ExplorationType
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from examples.torchrl_dqn import served
from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer

__all__ = ["train"]

ACTORS = 2
UPDATES = 2000
UPDATES_PER_PUSH = 50
WARM_UP = 1000
EPISODES = 5
REWARD_SCALE = 0.1


def pendulum() -> TransformedEnv:
    """Pendulum-v1, whose rewards are scaled to the size of a loss."""
    return TransformedEnv(GymEnv("Pendulum-v1"), RewardScaling(loc=0.0, scale=REWARD_SCALE))


def make_actor() -> ProbabilisticActor:
    """A policy for Pendulum-v1, which explores by itself."""
    network = nn.Sequential(MLP(in_features=3, out_features=2, num_cells=[64, 64]), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        spec=pendulum().action_spec,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -2.0, "high": 2.0, "tanh_loc": False},
        default_interaction_type=InteractionType.RANDOM,
    )


def train(address: str, updates: int = UPDATES, *, seed: int = 0, table: str = "sac") -> tuple[float, int]:
    """Trains on Pendulum-v1, and gives the mean return of 5 greedy episodes (from -1600 to 0; a random policy has -1200), and the frames it took."""
    torch.manual_seed(seed)
    actor, value = make_actor(), ValueOperator(MLP(in_features=4, out_features=1, num_cells=[64, 64]), in_keys=["observation", "action"])
    loss_module = SACLoss(actor, value, num_qvalue_nets=2)
    loss_module.make_value_estimator(gamma=0.98)
    target, optimizer = SoftUpdate(loss_module, tau=0.01), torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=100_000, batch_size=128, prefetch=4, wait=True) as replay:
        collector = MultiAsyncCollector([pendulum] * ACTORS, actor, frames_per_batch=50, total_frames=-1, replay_buffer=replay)
        collector.start()  # From now on the actors write by themselves.
        replay.buffer.wait_for(WARM_UP, timeout=120)
        for update in range(updates):
            losses = loss_module(replay.sample())
            optimizer.zero_grad()
            (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
            optimizer.step()
            target.step()
            if update % UPDATES_PER_PUSH == 0:
                collector.update_policy_weights_()
        collector.async_shutdown()
        return evaluated(actor), replay.write_count


def evaluated(actor: ProbabilisticActor) -> float:
    """The mean return of greedy episodes."""
    environment = pendulum()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        episodes = [environment.rollout(200, actor)["next", "reward"].sum() for _ in range(EPISODES)]
    return float(torch.stack(episodes).mean()) / REWARD_SCALE


if __name__ == "__main__":
    torch.set_num_threads(1)  # The networks are small: more threads would wait for each other.
    with served(sys.argv[1] if len(sys.argv) > 1 else None) as at:
        began = time.monotonic()
        mean, frames = train(at)
        print(f"mean return of {EPISODES} episodes: {mean:.0f}, after {UPDATES:,} updates, {frames:,} frames and {time.monotonic() - began:.0f} s")
