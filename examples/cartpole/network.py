"""The Q-network, and the file by which the actors get its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["ENVIRONMENT", "WeightsFile", "greedy_actions", "make_network"]

ENVIRONMENT = "CartPole-v1"
OBSERVATION_SIZE, ACTIONS, HIDDEN = 4, 2, 128


def make_network() -> nn.Sequential:
    """Maps observations, float32 [n, 4], to the values of the two actions, [n, 2]. Its weights come from torch's global generator."""
    return nn.Sequential(
        nn.Linear(OBSERVATION_SIZE, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, ACTIONS),
    )


@torch.inference_mode()
def greedy_actions(network: Callable[[torch.Tensor], torch.Tensor], observations: NDArray[np.float32]) -> NDArray[np.int64]:
    """The best action for each observation: [n, 4] to [n]."""
    actions: NDArray[np.int64] = network(torch.from_numpy(observations)).argmax(-1).numpy()
    return actions


class WeightsFile:
    """One safetensors file that the learner replaces and the actors read.

    The replacement is atomic: a reader finds the weights of one moment, never half of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def publish(self, network: nn.Module) -> None:
        """Puts the network's weights in place of those before."""
        new = self._path.with_suffix(".new")
        save_file(network.state_dict(), new)
        os.replace(new, self._path)

    def refresh(self, network: nn.Module) -> None:
        """Loads the weights into `network` where they are newer than those that it last got from here.

        Raises:
            FileNotFoundError: none were published yet.
        """
        written = self._path.stat().st_mtime_ns
        if written != self._seen:
            network.load_state_dict(load_file(self._path))
            self._seen = written
