"""An actor: plays CartPole and pushes what happens into the replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn

from examples.cartpole.network import ENVIRONMENT, greedy_actions, make_network
from examples.cartpole.pace import ROWS_PER_PUSH, Pace
from examples.cartpole.tables import PublishedWeights, open_transitions

__all__ = ["run_actor"]

EXPLORING_STEPS = 4_000
"""Steps of one actor over which epsilon falls from 1 to its end."""
LAST_EPSILON = 0.05

Transition = dict[str, Any]
Observation = NDArray[np.float32]


def run_actor(address: str, seed: int) -> None:
    """Plays for ever, with the newest weights that the learner published. The body of a process."""
    torch.set_num_threads(1)
    network = make_network()
    steps = transitions(gym.make(ENVIRONMENT), EpsilonGreedy(network, seed), seed)
    with open_transitions(address) as buffer, PublishedWeights(address) as weights:
        pace = Pace(buffer, weights)
        while True:
            pace.await_turn()
            weights.load(network)
            buffer.add_batch(stack(list(islice(steps, ROWS_PER_PUSH))))


class EpsilonGreedy:
    """Picks the network's best action, or a random one with a probability that falls with every call."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        self._network = network
        self._random = np.random.default_rng(seed)
        self._steps = count()

    def __call__(self, observation: Observation) -> int:
        """The action for one observation, [4]."""
        epsilon = max(LAST_EPSILON, 1 - next(self._steps) / EXPLORING_STEPS)
        if self._random.random() < epsilon:
            return int(self._random.integers(2))
        return int(greedy_actions(self._network, observation[None])[0])


def transitions(env: gym.Env[Observation, Any], policy: Callable[[Observation], int], seed: int) -> Iterator[Transition]:
    """Plays episode after episode, and yields each step.

    ``terminated`` is the pole's fall alone. An episode that the time limit cuts off goes on as far as the values are concerned, so ``truncated``
    is not stored.
    """
    observation, _ = env.reset(seed=seed)
    while True:
        action = policy(observation)
        following, reward, terminated, truncated, _ = env.step(action)
        yield {"observation": observation, "action": action, "reward": reward, "next_observation": following, "terminated": terminated}
        observation = env.reset()[0] if terminated or truncated else following


def stack(rows: list[Transition]) -> TensorDict:
    """Transitions as one TensorDict of batch size [n]; rewards become float32."""
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    fields["reward"] = fields["reward"].astype(np.float32)
    return TensorDict({name: torch.from_numpy(values) for name, values in fields.items()}, [len(rows)])
