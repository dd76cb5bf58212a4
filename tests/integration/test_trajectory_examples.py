"""The agents that learn from views of trajectories: what they see decides what they reach."""

from __future__ import annotations

import pytest
import torch
from examples import pixel_dqn, recurrent_dqn

from tdreplay_client import RemoteReplayBuffer

RANDOM_RETURN = 25
"""More than a random policy gets in CartPole-v1."""


@pytest.fixture(autouse=True)
def one_thread():
    """The networks are small: more threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(400)
def test_stacks_of_frames_that_are_stored_once_show_where_the_ball_flies(address, table):
    stacked, single = pixel_dqn.train(address, table=table), pixel_dqn.train(address, table=f"{table}-single", stack=1)
    print(f"mean return of {pixel_dqn.BALLS}: {stacked} with stacks, {single} with one frame")
    assert stacked >= 8
    assert single <= 2, "whoever sees one frame saves one ball in two at best, which is a return of 1"
    with RemoteReplayBuffer(address, table=table) as buffer:
        assert buffer.sample_batch(4)["obs"].shape == (4, 16, 16), "frames are stored without their stacks"


@pytest.mark.timeout(400)
def test_an_agent_with_a_memory_beats_one_without_on_the_same_steps(address, table):
    returns = recurrent_dqn.train(address, table=table)
    print(f"mean return of 500: {returns.recurrent} with a memory, {returns.feed_forward} without")
    assert returns.feed_forward > RANDOM_RETURN, "it learned, too"
    assert returns.recurrent > 80
    assert returns.recurrent > 1.5 * returns.feed_forward
    with RemoteReplayBuffer(address, table=table) as buffer:
        assert buffer.sample_batch(1000)["priority"].unique().numel() > 100, "sequences have their errors as priorities"
