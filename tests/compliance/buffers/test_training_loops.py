"""A training loop sees the same batches in every kind of buffer as in its own process: transition by transition, epoch by epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from compliance.kinds import SEEDS, MakeBuffer
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import SchemaError

Loop = Callable[[BaseReplayBuffer], list[TensorDict]]
Buffers = Callable[..., tuple[BaseReplayBuffer, BaseReplayBuffer]]


@pytest.fixture
def buffers(in_process: MakeBuffer, make_buffer: MakeBuffer) -> Buffers:
    """Makes an empty buffer in process, and one of the kind under test."""
    return lambda buffer_size, **options: (in_process(buffer_size, **options), make_buffer(buffer_size, **options))


def transition(step: int, action: torch.Tensor, device: torch.device) -> TensorDict:
    """One step of an environment, as an agent hands it over."""
    state = torch.arange(step, step + 3, dtype=torch.float32, device=device)
    done = torch.tensor(step % 5 == 4, device=device)
    fields = {"state": state, "action": action, "reward": torch.tensor(step / 2, device=device), "next_state": state + 1, "terminated": done}
    return TensorDict({**fields, "step": torch.tensor(step, device=device)})


def on_policy(buffer: BaseReplayBuffer) -> list[TensorDict]:
    """PPO's loop: collect, compute advantages over all rows, put them back, train for some epochs, start again."""
    trained = []
    for episode in range(3):
        for step in range(17):
            buffer.add(transition(17 * episode + step, torch.full((2,), step / 10), buffer.storing_device))
        data = buffer.sample_all()
        data["advantages"] = (data["reward"] - data["reward"].mean()).unsqueeze(-1)
        data.set("returns", data["reward"].flip(0).cumsum(0).flip(0))
        buffer.reset()
        buffer.add_batch(data)
        steps = buffer.get_steps_and_iterator(n_epochs=2, max_iter=0, batch_size=5)
        trained += [buffer.get_next_batch(5) for _ in range(steps)]
        buffer.reset()
    return trained


def off_policy(buffer: BaseReplayBuffer) -> list[TensorDict]:
    """The loop of SAC, TD3 and DDPG: one transition, then one random batch, once there are enough rows."""
    sampled = []
    for step in range(40):
        buffer.add(transition(step, torch.full((2,), step / 10), buffer.storing_device))
        if len(buffer) >= 8:
            assert buffer.get_steps_and_iterator(n_epochs=0, max_iter=1, batch_size=4) == 1
            sampled.append(buffer.sample_batch(4, seed=step))
    return sampled


def discrete(buffer: BaseReplayBuffer) -> list[TensorDict]:
    """DQN's loop: random actions, which are floats, come first; the network's, which are I64[1], follow."""
    sampled = []
    for step in range(30):
        action = torch.tensor(float(step % 3)) if step < 10 else torch.tensor([step % 3])
        buffer.add(transition(step, action, buffer.storing_device))
        if step >= 10:
            sampled.append(buffer.sample_batch(4, seed=step))
    return sampled


@pytest.mark.parametrize(
    ("loop", "buffer_size", "cast"), [(on_policy, 32, False), (off_policy, 20, False), (off_policy, 20, True), (discrete, 20, True)]
)
def test_a_training_loop_sees_the_same_batches_as_in_process(kind, buffers, loop, buffer_size, cast):
    over_shards = kind.shards > 1
    if over_shards and loop is not on_policy:
        pytest.skip(f"over shards: {SEEDS}")
    here, there = (loop(buffer) for buffer in buffers(buffer_size, cast=cast))
    assert len(here) == len(there) > 0
    for one, other in itertools.zip_longest(here, there):
        assert one.batch_size == other.batch_size
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        same = [key for key in one.keys(True, True) if not (over_shards and key == "row_id")]
        assert all(torch.equal(one[key], other[key]) and one[key].dtype is other[key].dtype for key in same)


def test_an_on_policy_loop_trains_on_every_row_with_its_advantage(buffers):
    for buffer in buffers(32):
        batches = on_policy(buffer)
        assert [len(batch) for batch in batches] == [5, 5, 5, 2] * 6
        assert torch.cat([batch["step"] for batch in batches]).tolist() == [17 * n + step for n in range(3) for _ in range(2) for step in range(17)]
        rewards = torch.arange(17) / 2
        assert torch.allclose(torch.cat([batch["advantages"] for batch in batches[:4]]).squeeze(-1), rewards - rewards.mean())
        assert torch.cat([batch["returns"] for batch in batches[:4]]).tolist() == [float(rewards[step:].sum()) for step in range(17)]


def test_actions_of_two_shapes_and_dtypes_are_one_field_with_cast_alone(buffers):
    for buffer in buffers(30, cast=True):
        discrete(buffer)
        assert buffer.sample_all()["action"].dtype is torch.float32
        assert buffer.sample_all()["action"].tolist() == [step % 3 for step in range(30)]


def test_without_cast_an_action_of_another_dtype_is_refused(buffers):
    for buffer in buffers(30):
        with pytest.raises(SchemaError, match=r"'action'.*F32\[\].*I64\[1\]"):
            discrete(buffer)
        assert len(buffer) == 10


def test_an_environment_of_float64_rewards_fills_a_float32_field(buffers):
    """Gymnasium's observations are float32 arrays, its rewards float64 or Python's numbers, its flags NumPy's or Python's bools."""
    for buffer in buffers(30, cast=True):
        buffer.add({"obs": np.zeros(3, np.float32), "reward": torch.zeros(()), "done": False})
        for reward in (np.float64(0.5), 1, 2.0, np.array(3.0), np.array([4.0])):
            buffer.add({"obs": np.ones(3), "reward": reward, "done": np.bool_(True)})
        buffer.add_batch({"obs": np.ones((2, 3)), "reward": np.array([5.0, 6.0]), "done": [True, True]})
        assert buffer.sample_all()["reward"].dtype is torch.float32
        assert buffer.sample_all()["reward"].tolist() == [0, 0.5, 1, 2, 3, 4, 5, 6]
