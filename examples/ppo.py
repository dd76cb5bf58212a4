"""PPO over a queue: ``python -m examples.ppo``.

Actors push the steps of their rollouts into a table that is a queue: the oldest rows come first, each row leaves when the learner has taken it, and
actors wait while the queue is full. So the learner trains on each step once, in order, and no step is older than the queue is long. PPO needs steps
of a policy that is close to the one it trains.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import torch
from tensordict import TensorDict
from torch import nn

from tdreplay.errors import TableNotFoundError
from tdreplay_client import Fifo, Queue, RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["Policy", "collect", "learn", "train"]

ROLLOUT, ACTORS = 256, 2
BATCH = ROLLOUT * ACTORS
GAMMA, LAMBDA, CLIP, ENTROPY = 0.99, 0.95, 0.2, 0.01
STEPS = 40_000


class Policy(nn.Module):
    """The logits of the actions, and the value of the observation."""

    def __init__(self, observations: int = 4, actions: int = 2) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(observations, 64), nn.Tanh(), nn.Linear(64, actions))
        self.critic = nn.Sequential(nn.Linear(observations, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, obs: torch.Tensor) -> tuple[torch.distributions.Categorical, torch.Tensor]:
        """The actions and the values of observations of shape [..., 4]."""
        return torch.distributions.Categorical(logits=self.actor(obs)), self.critic(obs).squeeze(-1)


class Shared:
    """The newest policy, and the returns of the last episodes: what the learner and its actors share in this one process."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.returns, self.over = policy, deque[float](maxlen=20), threading.Event()
        self._lock = threading.Lock()

    def newest(self) -> Policy:
        """A copy of the policy."""
        with self._lock:
            return copy.deepcopy(self.policy)

    def update(self, policy: Policy) -> None:
        """Takes over the weights of the learner's policy."""
        with self._lock:
            self.policy.load_state_dict(policy.state_dict())


def collect(address: str, shared: Shared, seed: int) -> None:
    """Steps CartPole with the newest policy, and pushes rollout after rollout. It waits while the queue is full."""
    env, total = gymnasium.make("CartPole-v1"), 0.0
    obs, _ = env.reset(seed=seed)
    torch.manual_seed(seed)
    with RemoteReplayBuffer(address, table="rollouts") as queue:
        while not shared.over.is_set():
            policy, steps = shared.newest(), []
            with torch.no_grad():
                for _ in range(ROLLOUT):
                    seen = torch.from_numpy(obs)
                    actions, value = policy(seen)
                    action = actions.sample()
                    obs, reward, terminated, truncated, _ = env.step(int(action))
                    total += float(reward)
                    after = torch.zeros(()) if terminated else policy(torch.from_numpy(obs))[1]
                    ended = terminated or truncated
                    steps.append((seen, action, actions.log_prob(action), value, float(reward) + GAMMA * float(after) - float(value), ended))
                    if ended:
                        shared.returns.append(total)
                        (obs, _), total = env.reset(), 0.0
            try:
                queue.add_batch(_rows(steps))
            except TableNotFoundError:
                return


def _rows(steps: list[tuple[Any, ...]]) -> TensorDict:
    """The steps of a rollout as rows, with their advantages: generalised advantage estimation (Schulman et al., ICLR 2016)."""
    advantage, advantages = 0.0, []
    for *_, error, ended in reversed(steps):
        advantage = error + (0.0 if ended else GAMMA * LAMBDA * advantage)
        advantages.append(advantage)
    obs, action, log_prob, value = (torch.stack([step[n] for step in steps]) for n in range(4))
    given = torch.tensor(advantages[::-1])
    return TensorDict(
        {"obs": obs, "action": action, "log_prob": log_prob, "advantage": given, "return": given + value},
        [len(steps)],
    )


def learn(policy: Policy, optimiser: torch.optim.Optimizer, batch: TensorDict) -> None:
    """Trains on the steps of a batch: the clipped objective of PPO (Schulman et al., 2017)."""
    advantages = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    for _ in range(6):
        for places in torch.randperm(len(batch)).view(-1, 64):
            some = batch[places]
            actions, values = policy(some["obs"])
            ratio = (actions.log_prob(some["action"]) - some["log_prob"]).exp()
            gain = torch.minimum(ratio * advantages[places], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[places]).mean()
            loss = -gain + 0.5 * (values - some["return"]).square().mean() - ENTROPY * actions.entropy().mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimiser.step()


def train(address: str, steps: int = STEPS, *, seed: int = 0) -> float:
    """Trains on so many steps, and gives the mean return of the last 20 episodes that the actors played: at most 500."""
    torch.manual_seed(seed)
    policy = Policy()
    shared, optimiser = Shared(copy.deepcopy(policy)), torch.optim.Adam(policy.parameters(), lr=1e-3)
    queue = RemoteReplayBuffer(address, table="rollouts", buffer_size=2 * BATCH, sampler=Fifo(), max_times_sampled=1, rate_limiter=Queue(2 * BATCH))
    actors = [threading.Thread(target=collect, args=(address, shared, seed + n)) for n in range(ACTORS)]
    with queue, queue.stream(BATCH, prefetch=1) as batches:
        for actor in actors:
            actor.start()
        try:
            for _ in range(steps // BATCH):
                learn(policy, optimiser, next(batches))
                shared.update(policy)
        finally:
            shared.over.set()
            queue.drop()  # Whoever waits for room in the queue learns that it is gone.
            for actor in actors:
                actor.join()
    return sum(shared.returns) / max(1, len(shared.returns))


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
        print(f"mean return of the last 20 episodes: {train(at):.0f} of 500, after {STEPS:,} steps and {time.monotonic() - began:.0f} s")
