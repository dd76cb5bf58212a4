"""Stable-Baselines3 with its replay buffer on a server."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from examples.sb3 import RemoteBuffer, cartpole, train
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

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


def dqn(address: str, table: str, seed: int) -> DQN:
    return DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        buffer_size=400,
        learning_starts=50,
        train_freq=10,
        gradient_steps=2,
        policy_kwargs={"net_arch": [16]},
        replay_buffer_class=RemoteBuffer,
        replay_buffer_kwargs={"address": address, "table": table},
        seed=seed,
        device="cpu",
    )


def weights(model: DQN) -> list[float]:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).tolist()


def test_seeded_runs_reproduce(address, table):
    learned = []
    for run, seed in enumerate((5, 5, 6)):
        model = dqn(address, f"{table}-{run}", seed).learn(600)
        assert model.replay_buffer.size() == 400
        learned.append(weights(model))
        model.replay_buffer.close()
    assert learned[0] == learned[1] != learned[2]


def test_a_model_that_was_saved_goes_on_with_the_rows(address, table, tmp_path):
    model = dqn(address, table, 5).learn(300)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "rows.pkl")
    assert (tmp_path / "rows.pkl").stat().st_size < 10_000, "the rows stay on the server"
    stored = model.replay_buffer.rows.sample_all()
    model.replay_buffer.close()
    for by_itself in (True, False):
        again = DQN.load(tmp_path / "model", env=gymnasium.make("CartPole-v1"))
        if not by_itself:
            again.load_replay_buffer(tmp_path / "rows.pkl")
        assert weights(again) == weights(model)
        rows = again.replay_buffer.rows.sample_all()
        assert (rows[:300] == stored).all()
        again.learn(50, reset_num_timesteps=False)
        assert again.replay_buffer.size() == len(rows) + 50
        again.replay_buffer.close()


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4)),
        (spaces.Discrete(7), spaces.MultiDiscrete([2, 3])),
        (spaces.Box(0, 255, (2, 4, 4), np.uint8), spaces.Box(-1, 1, (2,), np.float64)),
    ],
    ids=["vectors", "numbers", "images"],
)
def test_batches_are_those_of_stable_baselines3(address, table, observations, actions):
    """Of 12 rows: 6 steps in 2 environments. Each step has the reward by which its row is known."""
    with RemoteReplayBuffer(address, table=table, buffer_size=12):
        theirs = ReplayBuffer(12, observations, actions, "cpu", n_envs=2)
        ours = RemoteBuffer(12, observations, actions, "cpu", n_envs=2, address=address, table=table)
        for step in range(6):
            obs, next_obs, action = (np.stack([space.sample(), space.sample()]) for space in (observations, observations, actions))
            infos = [{"TimeLimit.truncated": step == 3}, {}]
            for buffer in (ours, theirs):
                buffer.add(obs, next_obs, action, np.array([step, step + 0.5]), np.array([step > 2, step == 4]), infos)
        batches = [buffer.sample(200) for buffer in (ours, theirs)]
        assert [[(one.dtype, one.shape) for one in batch if one is not None] for batch in batches[:1]] == [
            [(one.dtype, one.shape) for one in batch if one is not None] for batch in batches[1:]
        ]
        seen = [{tuple(float(value) for one in row for value in one.reshape(-1)) for row in zip(*batch[:5], strict=True)} for batch in batches]
        assert len(seen[0]) == 12
        assert seen[0] == seen[1]
        ours.reset()
        assert ours.size() == 0
        ours.close()


def test_sac_learns_from_normalized_batches_of_several_environments(address, table):
    environments = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=3))
    model = SAC(
        "MlpPolicy",
        environments,
        buffer_size=1000,
        learning_starts=20,
        train_freq=5,
        gradient_steps=2,
        policy_kwargs={"net_arch": [16]},
        replay_buffer_class=RemoteBuffer,
        replay_buffer_kwargs={"address": address, "table": table},
        seed=5,
        device="cpu",
    ).learn(200)
    buffer = model.replay_buffer
    assert (buffer.size(), buffer.rows.size) == (100, 200)
    assert buffer.sample(50).rewards.min() < -1.5, "rows are stored as they are"
    assert buffer.sample(50, env=environments).rewards.abs().max() <= environments.clip_reward
    buffer.close()


def test_what_cannot_be_stored_is_refused(address, table):
    box = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match="optimize_memory_usage"):
        RemoteBuffer(10, box, box, optimize_memory_usage=True, address=address, table=table)
    with pytest.raises(TypeError, match="Dict"):
        RemoteBuffer(10, spaces.Dict(a=box), box, address=address, table=table)
    assert table not in RemoteReplayBuffer.tables(address)


@pytest.mark.timeout(300)
def test_the_example_learns(address):
    assert train(address, 8000) > 2 * RANDOM_RETURN


def test_the_example_s_table_is_as_large_as_its_buffer(address, table):
    model = cartpole(address, table=table)
    assert model.replay_buffer.rows.buffer_size == model.buffer_size
    model.replay_buffer.close()
