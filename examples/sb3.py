"""Stable-Baselines3 with its replay buffer on a server: ``python -m examples.sb3``.

`RemoteBuffer` is a ``replay_buffer_class`` for DQN, SAC, TD3 and DDPG. So the rows of a training outlive it, and others can read them or add to them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from tdreplay_client import RemoteReplayBuffer, Writer
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["RemoteBuffer", "cartpole", "train"]

STEPS = 20_000


class RemoteBuffer(ReplayBuffer):
    """A replay buffer of Stable-Baselines3 whose rows are those of a table of a server.

    Transitions go to the server in blocks, and all of them are there before a batch is drawn. Batches are as reproducible as those of
    Stable-Baselines3: it seeds the generator of NumPy, from which their seeds come.

    ``model.save_replay_buffer`` writes where the rows are, and not the rows: they stay on the server. A model that is loaded goes on with them.

    Args:
        buffer_size: The capacity of the table, in transitions.
        observation_space: A space whose observations are one array each.
        action_space: The space of the actions.
        device: Where batches go.
        n_envs: The environments, each of which adds a transition in each step.
        optimize_memory_usage: Must be False: each transition is a row of its own.
        handle_timeout_termination: Whether an episode that was cut short by its time limit counts as not done.
        address: The address of the server.
        table: The table's name. Tables are made when they are first used.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        address: str,
        table: str = "sb3",
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage must be False: each transition is a row of its own")
        if isinstance(observation_space, gymnasium.spaces.Dict):
            raise TypeError("observation_space must not be a Dict: an observation must be one array")
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)  # ReplayBuffer's own would make arrays for all rows.
        self.handle_timeout_termination, self.optimize_memory_usage = handle_timeout_termination, False
        self.rows = RemoteReplayBuffer(address, table=table, buffer_size=buffer_size)
        self._writer: Writer | None = None

    def add(
        self, obs: np.ndarray, next_obs: np.ndarray, action: np.ndarray, reward: np.ndarray, done: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Adds a transition of each environment."""
        ended = np.asarray(done, np.float32)
        if self.handle_timeout_termination:
            ended *= [not info.get("TimeLimit.truncated", False) for info in infos]
        if self._writer is None:
            self._writer = self.rows.writer()
        actions = action.reshape(self.n_envs, self.action_dim).astype(self._maybe_cast_dtype(self.action_space.dtype))
        for env in range(self.n_envs):
            self._writer.append(
                {
                    "obs": np.asarray(obs[env]).reshape(self.obs_shape),
                    "next_obs": np.asarray(next_obs[env]).reshape(self.obs_shape),
                    "action": actions[env],
                    "reward": np.asarray(reward[env : env + 1], np.float32),
                    "done": ended[env : env + 1],
                }
            )

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draws transitions uniformly, with replacement."""
        self.flush()
        batch = self.rows.sample_batch(batch_size, seed=int(np.random.randint(1 << 62)))
        return ReplayBufferSamples(
            self._to_device(self._normalize_obs(batch["obs"].numpy(), env)),
            batch["action"].to(self.device),
            self._to_device(self._normalize_obs(batch["next_obs"].numpy(), env)),
            batch["done"].to(self.device),
            self._to_device(self._normalize_reward(batch["reward"].numpy(), env)),
        )

    def _to_device(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=self.device)

    def flush(self) -> None:
        """Waits until all transitions are stored."""
        if self._writer is not None:
            self._writer.flush()

    def size(self) -> int:
        """The steps stored: each has a transition of each environment."""
        self.flush()
        return int(self.rows.size // self.n_envs)

    def reset(self) -> None:
        """Removes all transitions, for everyone."""
        self.flush()
        self.rows.reset()

    def close(self) -> None:
        """Stores what was added, and closes the connection. The table stays."""
        self.rows.close()

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**self.__dict__, "_writer": None}


def cartpole(address: str, *, table: str = "sb3", seed: int = 0) -> DQN:
    """A DQN for CartPole-v1, with the numbers of RL Baselines3 Zoo."""
    return DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2.3e-3,
        buffer_size=100_000,
        learning_starts=1000,
        batch_size=64,
        gamma=0.99,
        train_freq=256,
        gradient_steps=128,
        target_update_interval=10,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=RemoteBuffer,
        replay_buffer_kwargs={"address": address, "table": table},
        seed=seed,
        device="cpu",
    )


def train(address: str, steps: int = STEPS, *, seed: int = 0) -> float:
    """Trains, and gives the mean return of 20 greedy episodes: at most 500."""
    model = cartpole(address, seed=seed)
    model.learn(steps)
    returns, _ = evaluate_policy(model, Monitor(gymnasium.make("CartPole-v1")), n_eval_episodes=20)
    model.replay_buffer.close()
    return float(np.mean(returns))


@contextmanager
def served(address: str | None) -> Iterator[str]:
    """The address, or that of a server of this process."""
    if address is not None:
        yield address
        return
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        yield server.address


if __name__ == "__main__":
    torch.set_num_threads(1)  # The network is small: more threads would wait for each other.
    with served(sys.argv[1] if len(sys.argv) > 1 else None) as at:
        began = time.monotonic()
        print(f"mean return of 20 episodes: {train(at):.0f} of 500, after {STEPS:,} steps and {time.monotonic() - began:.0f} s")
