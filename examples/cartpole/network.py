"""The Q-network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["ENVIRONMENT", "greedy_actions", "make_network"]

ENVIRONMENT = "CartPole-v1"
OBSERVATION_SIZE, ACTIONS, HIDDEN = 4, 2, 128


def make_network() -> nn.Sequential:
    """Maps observations, float32 [n, 4], to the values of the two actions, [n, 2]. Its weights come from torch's global generator.

    Without the normalisation one training in two forgets what it learned before it reaches the goal.
    """
    return nn.Sequential(
        nn.Linear(OBSERVATION_SIZE, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, ACTIONS),
    )


@torch.inference_mode()
def greedy_actions(network: Callable[[torch.Tensor], torch.Tensor], observations: NDArray[np.float32]) -> NDArray[np.int64]:
    """The best action for each observation: [n, 4] to [n]."""
    actions: NDArray[np.int64] = network(torch.from_numpy(observations)).argmax(-1).numpy()
    return actions
