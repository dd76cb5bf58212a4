"""When CartPole counts as solved, and the greedy episodes that decide it."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from torch import nn

from examples.cartpole.network import ENVIRONMENT, greedy_actions

__all__ = ["EPISODES", "GOAL", "Evaluation", "Evaluator"]

EPISODES = 20
GOAL = 400.0
"""The mean return of 20 greedy episodes at which CartPole counts as solved."""


@dataclass(frozen=True)
class Evaluation:
    """The returns of greedy episodes with the weights of one moment.

    Attributes:
        rows: that the actors had pushed by then.
        returns: one per episode.
    """

    rows: int
    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the returns."""
        return float(np.mean(self.returns))

    @property
    def solved(self) -> bool:
        """Whether the goal is reached."""
        return self.mean >= GOAL


class Evaluator:
    """Plays 20 greedy episodes side by side, each time from other start states, which the seed decides."""

    def __init__(self, seed: int) -> None:
        self._seeds = np.random.default_rng(seed)
        self._envs = gym.make_vec(ENVIRONMENT, num_envs=EPISODES)

    def evaluate(self, network: nn.Module, rows: int) -> Evaluation:
        """What the network is worth after `rows` rows.

        Of episodes that reach the goal only 20 more with the same weights tell: the first ones were picked out of many for being good.
        """
        first = Evaluation(rows, self._play(network))
        return Evaluation(rows, self._play(network)) if first.solved else first

    def _play(self, network: nn.Module) -> tuple[float, ...]:
        observations, _ = self._envs.reset(seed=int(self._seeds.integers(1 << 31)))
        returns, playing = np.zeros(EPISODES), np.ones(EPISODES, dtype=bool)
        while playing.any():
            observations, rewards, terminated, truncated, _ = self._envs.step(greedy_actions(network, observations))
            returns += rewards * playing
            playing &= ~(terminated | truncated)
        return tuple(returns.tolist())
