"""PPO over a queue: it learns, and takes each step once."""

from __future__ import annotations

import pytest
import torch
from examples.ppo import BATCH, train

from tdreplay_client import RemoteReplayBuffer

RANDOM_RETURN = 25
"""More than a random policy gets in CartPole-v1."""
STEPS = 8192


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are small: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_learns_cartpole_from_a_queue(address):
    assert STEPS % BATCH == 0
    assert train(address, STEPS) > 2 * RANDOM_RETURN
    assert "rollouts" not in RemoteReplayBuffer.tables(address)
