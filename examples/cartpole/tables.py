"""What the actors and the learner share: two tables of a server, and nothing else."""

from __future__ import annotations

from types import TracebackType

import torch
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from typing_extensions import Self

from tdreplay_client import RemoteReplayBuffer

__all__ = ["CAPACITY", "PublishedWeights", "open_transitions"]

CAPACITY = 50_000
TIMEOUT = 120.0
"""Seconds within which a server that went away must be back."""


def open_transitions(address: str) -> RemoteReplayBuffer:
    """The replay buffer, created where it is not there."""
    return RemoteReplayBuffer(address, table="transitions", buffer_size=CAPACITY, timeout=TIMEOUT)


class PublishedWeights:
    """A table of one row, a network's weights: the learner replaces it, the actors read it.

    A reader finds the weights of one moment, never half of them, and they outlive the learner.
    """

    def __init__(self, address: str) -> None:
        self._table = RemoteReplayBuffer(address, table="weights", buffer_size=1, timeout=TIMEOUT)

    @property
    def times(self) -> int:
        """How often weights were published."""
        return self._table.state().write_count

    def publish(self, network: nn.Module) -> None:
        """Puts the network's weights in place of those before."""
        self._table.add(TensorDict({"weights": parameters_to_vector(network.parameters()).detach()}, []))

    def load(self, network: nn.Module) -> None:
        """Puts the newest weights into `network`.

        Raises:
            SlotIndexError: none were published yet.
        """
        with torch.no_grad():
            vector_to_parameters(self._table.sample_by_index([0])["weights"][0], network.parameters())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._table.close()
