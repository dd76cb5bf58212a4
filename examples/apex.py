"""An Ape-X DQN on Ray, with a replay buffer of several shards: ``python -m examples.apex``.

Actors play CartPole-v1, each environment with another share of random actions, and store steps with the priorities that these have by the actor's own
network. The learner draws transitions of three steps in proportion to their priorities, corrects for that with importance weights, and gives the rows
their new errors back as priorities (Horgan et al., Distributed Prioritized Experience Replay, ICLR 2018). Actors and learner are actors of Ray. Calls
and weights go through Ray; what was played goes straight from the actors to the shards of the buffer, and from there to the learner.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import ray
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn

from tdreplay_client import Prioritized, ShardedReplayBuffer, TableConfig, Trajectories, Transitions, importance_weights
from tdreplay_client.ray import ReplayCluster

__all__ = ["GOAL", "TABLE", "Result", "train"]

SHARDS = 2
TABLE = TableConfig(50_000, sampler=Prioritized(alpha=0.6), trajectories=Trajectories())
ACTORS, ENVS, STEPS = 2, 4, 32
"""Steps: that each environment of an actor makes in a call."""
WARM_UP, BATCH, N_STEP, GAMMA = 1_000, 128, 3, 0.99
HIDDEN, LEARNING_RATE, TAU, BETA, LEAST_PRIORITY = 128, 5e-4, 0.02, 0.6, 1e-3
UPDATES_PER_CALL, UPDATES_PER_EVALUATION, MOST_UPDATES = 64, 512, 30_000
EPISODES, GOAL = 20, 475.0
"""CartPole-v1 counts as solved with a mean return of 475 in an evaluation; the most is 500."""

Observations = NDArray[np.float32]
Weights = dict[str, torch.Tensor]


class Result(NamedTuple):
    """What a training came to.

    Attributes:
        mean_return: Of the last 20 greedy episodes.
        updates: Gradient steps.
        steps: That the actors played.
        reprioritized: Rows that got another priority from the learner.
    """

    mean_return: float
    updates: int
    steps: int
    reprioritized: int


def make_network() -> nn.Sequential:
    """Maps observations, float32 [n, 4], to the values of the two actions, [n, 2]."""
    return nn.Sequential(
        nn.Linear(4, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2)
    )


def make_envs(n: int) -> SyncVectorEnv:
    """So many environments that are stepped together. One begins again in the step after its end."""
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * n)


def exploration(actor: int, actors: int) -> NDArray[np.float64]:
    """How often each environment of an actor takes a random action: all of them together from 0.4 down to 0.4 ** 8, as in the paper."""
    numbers = np.arange(actor * ENVS, (actor + 1) * ENVS)
    return 0.4 ** (1 + 7 * numbers / (actors * ENVS - 1))


@torch.no_grad()
def values_of(network: nn.Module, obs: Observations) -> Observations:
    """The values of the actions, [n, 2]."""
    values: Observations = network(torch.from_numpy(obs)).numpy()
    return values


class Actor:
    """Plays in environments of its own, and stores the steps.

    Args:
        buffer: Where they go: a copy of the driver's buffer, with connections of its own.
        number: Of the actor, from 0 up.
        actors: How many there are.
        seed: Of all of them.
    """

    def __init__(self, buffer: ShardedReplayBuffer, number: int, actors: int, seed: int) -> None:
        torch.set_num_threads(1)  # The network is small: more threads would wait for each other.
        self._network, self._exploration = make_network(), exploration(number, actors)
        self._envs, self._rng = make_envs(ENVS), np.random.default_rng([seed, number])
        self._writer = buffer.trajectory_writer(ENVS, autoreset="next_step")
        self._obs, _ = self._envs.reset(seed=seed + number * ENVS)

    def play(self, weights: Weights) -> int:
        """Makes `STEPS` steps in each environment by these weights, and gives how many that are together."""
        self._network.load_state_dict(weights)
        values = values_of(self._network, self._obs)
        for _ in range(STEPS):
            values = self._step(values)
        return STEPS * ENVS

    def _step(self, values: Observations) -> Observations:
        """Takes a step in each environment, where the actions have these values, and gives the values after it."""
        random = self._rng.random(ENVS) < self._exploration
        action = np.where(random, self._rng.integers(2, size=ENVS), values.argmax(1))
        after, reward, terminated, truncated, _ = self._envs.step(action)
        following = values_of(self._network, after)
        error = reward + GAMMA * following.max(1) * ~terminated - values[np.arange(ENVS), action]
        step = {"obs": self._obs, "action": action, "reward": reward.astype(np.float32), "terminated": terminated, "truncated": truncated}
        self._writer.append(step, final={"obs": after}, priority=np.abs(error) + LEAST_PRIORITY)
        self._obs = after
        return following


class DoubleDQN:
    """Deep Q-learning where the network picks the next action, and a copy of it that follows slowly values it (van Hasselt et al., AAAI 2016)."""

    def __init__(self) -> None:
        self.network = make_network()
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)

    def update(self, batch: TensorDict) -> torch.Tensor:
        """Takes a gradient step, and gives the errors of the batch before it, [n]."""
        values = self.network(batch["obs"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = self.network(batch["next", "obs"]).argmax(1, keepdim=True)
            wanted = batch["next", "reward"] + batch["discount"] * self.target(batch["next", "obs"]).gather(1, best).squeeze(1)
        losses = nn.functional.smooth_l1_loss(values, wanted, reduction="none")
        self._optimizer.zero_grad()
        (importance_weights(batch, beta=BETA) * losses).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 10)
        self._optimizer.step()
        self._follow()
        errors: torch.Tensor = (wanted - values).detach()
        return errors

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, TAU)


class Learner:
    """Trains a network on what actors play, and tells them when to play on: so many updates for so many steps, however fast each side is.

    Args:
        buffer: Where the steps are: a copy of the driver's buffer, with connections of its own.
        seed: Of the network, and of the episodes of evaluations.
    """

    def __init__(self, buffer: ShardedReplayBuffer, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self._buffer, self._agent, self._rng = buffer, DoubleDQN(), np.random.default_rng(seed)
        self._updates, self._steps = 0, 0

    def train(self, actors: Sequence[Any], most_updates: int) -> Result:
        """Trains until CartPole is solved, or so many updates are made."""
        playing = {self._play(actor): actor for actor in actors}
        mean_return, evaluated = 0.0, 0
        with self._buffer.stream(BATCH, view=Transitions(n_step=N_STEP, gamma=GAMMA)) as batches:
            while mean_return < GOAL and self._updates < most_updates:
                (played,), _ = ray.wait(list(playing), num_returns=1)
                self._steps += ray.get(played)
                actor = playing.pop(played)
                playing[self._play(actor)] = actor
                if self._steps >= WARM_UP:
                    self._learn(batches)
                if self._updates >= evaluated + UPDATES_PER_EVALUATION:
                    mean_return, evaluated = self._evaluated(), self._updates
                    print(f"{self._steps:6,} steps  {self._updates:6,} updates  mean return {mean_return:5.1f}")
            return Result(mean_return, self._updates, self._steps, batches.updated.updated)

    def _play(self, actor: Any) -> Any:
        return actor.play.remote(self._agent.network.state_dict())

    def _learn(self, batches: Any) -> None:
        """As many updates as belong to what an actor plays in a call."""
        for _ in range(UPDATES_PER_CALL):
            batch = next(batches)
            batches.update_priorities(batch, self._agent.update(batch).abs() + LEAST_PRIORITY)
        self._updates += UPDATES_PER_CALL

    def _evaluated(self) -> float:
        """The mean return of greedy episodes, each from another start."""
        envs = make_envs(EPISODES)
        obs, _ = envs.reset(seed=int(self._rng.integers(1 << 31)))
        returns, playing = np.zeros(EPISODES), np.ones(EPISODES, bool)
        while playing.any():
            obs, reward, terminated, truncated, _ = envs.step(values_of(self._agent.target, obs).argmax(1))
            returns += reward * playing
            playing &= ~(terminated | truncated)
        envs.close()
        return float(returns.mean())


def train(buffer: ShardedReplayBuffer, most_updates: int = MOST_UPDATES, *, seed: int = 0) -> Result:
    """Trains with actors and a learner on the Ray that this process is connected to. The buffer's table is one of trajectories, with priorities."""
    actor: Any = ray.remote(num_cpus=0.25, max_restarts=-1, max_task_retries=-1)(Actor)
    actors = [actor.remote(buffer, number, ACTORS, seed) for number in range(ACTORS)]
    learner: Any = ray.remote(num_cpus=0.5)(Learner).remote(buffer, seed)
    result: Result = ray.get(learner.train.remote(actors, most_updates))
    return result


def main() -> None:
    """Starts a Ray and a cluster of shards on this machine, trains, and ends both."""
    ray.init("local", num_cpus=2, include_dashboard=False)
    with tempfile.TemporaryDirectory() as data_dir:
        cluster = ReplayCluster(SHARDS, TABLE, data_dir, name="apex", resources={"CPU": 0.5}, host="127.0.0.1")
        try:
            with cluster.buffer() as buffer:
                began = time.monotonic()
                result = train(buffer)
                print(f"mean return of {EPISODES} episodes: {result.mean_return:.0f} of 500, after {time.monotonic() - began:.0f} s, {result}")
                print("rows of each shard:", [shard.description.size for shard in buffer.describe().shards if shard.description])
        finally:
            cluster.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
