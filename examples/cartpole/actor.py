"""An actor: plays CartPole and pushes what happens into the replay buffer."""

from __future__ import annotations

from collections import deque
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

EXPLORING_STEPS = 2_000
"""Steps of one actor over which epsilon falls from 1 to its end."""
LAST_EPSILON = 0.05
DISCOUNT = 0.99
STEPS = 5
"""Of the environment, that one transition spans."""

Transition = dict[str, Any]
Observation = NDArray[np.float32]
Step = tuple[Observation, int, float]
"""An observation, the action that followed it, and that one's reward."""


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
    """Plays episode after episode, and yields a transition for each step: of STEPS steps, and of fewer at an episode's end."""
    observation, _ = env.reset(seed=seed)
    steps: deque[Step] = deque()
    while True:
        action = policy(observation)
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, float(reward)))
        ended = terminated or truncated
        while len(steps) == STEPS or (ended and steps):
            yield n_step(steps, following, terminated)
            steps.popleft()
        observation = env.reset()[0] if ended else following


def n_step(steps: deque[Step], following: Observation, terminated: bool) -> Transition:
    """Steps as one transition (n-step returns: Sutton and Barto, Reinforcement Learning, 2nd edition, chapter 7).

    ``discount`` is what the value of ``next_observation`` counts for: nothing after the pole's fall. An episode that the time limit cuts off goes on
    as far as the values are concerned.
    """
    observation, action, _ = steps[0]
    return {
        "observation": observation,
        "action": action,
        "reward": sum(DISCOUNT**step * reward for step, (_, _, reward) in enumerate(steps)),
        "next_observation": following,
        "discount": 0.0 if terminated else DISCOUNT ** len(steps),
    }


def stack(rows: list[Transition]) -> TensorDict:
    """Transitions as one TensorDict of batch size [n]; its real numbers are float32."""
    fields = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    fields |= {name: fields[name].astype(np.float32) for name in ("reward", "discount")}
    return TensorDict({name: torch.from_numpy(values) for name, values in fields.items()}, [len(rows)])
