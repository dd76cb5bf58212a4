"""A DQN on pixels: ``python -m examples.pixel_dqn [ADDRESS]``.

Each frame of 16 by 16 bytes is stored once. The stacks of four frames and the transitions of three steps are made when a batch is drawn: the table
holds steps, and the stream has a view. One frame does not show where the ball flies, a stack does: the same agent is trained on single frames, too.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn

from tdreplay_client import RemoteReplayBuffer, Transitions
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["Keeper", "evaluated", "make_network", "train"]

SIZE, BALLS, STACK = 16, 10, 4
QUARTERS, FALL, SPEEDS = 4, 3, (-5, -3, 3, 5)
Frame = NDArray[np.uint8]
ENVS, STEPS, WARM_UP = 8, 6_000, 1000
BATCH, N_STEP, GAMMA, TAU, LEARNING_RATE = 128, 3, 0.95, 0.05, 2e-3


class Keeper(gymnasium.Env[Frame, np.int64]):
    """Balls fly at a goal, one after the other, and the keeper has to be in the right quarter of it when each arrives.

    A ball comes down in five steps, and moves to the left or to the right by as many pixels in each; what leaves on one side comes in on the other.
    A frame shows the ball alone. So whoever sees one frame has to guess the side, and saves one ball in two at best. The reward is 1 for a save. An
    episode terminates with the first ball that is not saved, and is truncated after ten saves.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(QUARTERS)
        self._row, self._column, self._speed, self._saved = 0, 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begins an episode, with a ball at the top."""
        super().reset(seed=seed)
        self._saved = 0
        self._shoot()
        return self._frame(), {}

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Moves the ball, and the keeper to a quarter."""
        self._row, self._column = self._row + FALL, (self._column + self._speed) % SIZE
        arrived = self._row == SIZE - 1
        saved = arrived and self._column * QUARTERS // SIZE == action
        self._saved += saved
        if saved:
            self._shoot()
        return self._frame(), float(saved), bool(arrived and not saved), self._saved == BALLS, {}

    def _shoot(self) -> None:
        self._row, self._column, self._speed = 0, int(self.np_random.integers(SIZE)), int(self.np_random.choice(SPEEDS))

    def _frame(self) -> Frame:
        frame = np.zeros((SIZE, SIZE), np.uint8)
        frame[self._row, self._column] = 255
        return frame


class Scaled(nn.Module):
    """Bytes become numbers from 0 to 1."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """The same frames as float32."""
        return frames.float() / 255


def make_network(stack: int = STACK) -> nn.Sequential:
    """Maps stacks of frames, uint8 [n, stack, 16, 16], to the values of the four actions, [n, 4]."""
    return nn.Sequential(
        Scaled(),
        nn.Conv2d(stack, 32, 4, stride=4),
        nn.Flatten(),
        nn.LayerNorm(512),
        nn.ReLU(),
        nn.Linear(512, 128),
        nn.LayerNorm(128),
        nn.ReLU(),
        nn.Linear(128, QUARTERS),
    )


def loss(network: nn.Module, target: nn.Module, batch: TensorDict) -> torch.Tensor:
    """The error of Q-learning over `n_steps` steps. After a termination `discount` is 0; after a truncation it is not."""
    with torch.no_grad():
        wanted = batch["next", "reward"] + batch["discount"] * target(batch["next", "obs"]).amax(1)
    found = network(batch["obs"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    return nn.functional.smooth_l1_loss(found, wanted)


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module) -> None:
    """Moves the weights of the target a little towards those of the network."""
    for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, TAU)


def train(address: str, steps: int = STEPS, *, seed: int = 0, table: str = "pixels", stack: int = STACK) -> float:
    """Plays so many steps, learns meanwhile from stacks of so many frames, and gives the mean return of 20 episodes: at most 10."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = make_network(stack)
    target = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    view = Transitions(n_step=N_STEP, gamma=GAMMA, frame_stack={"obs": stack})
    envs = _envs(ENVS, stack)
    obs, _ = envs.reset(seed=seed)
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=steps, trajectories=True, seed=seed)
    with buffer, buffer.trajectory_writer(ENVS, autoreset="next_step") as writer, buffer.stream(BATCH, view=view) as batches:
        for played in range(0, steps, ENVS):
            action = _actions(network, obs, max(0.02, 1 - 3 * played / steps), rng)
            after, reward, terminated, truncated, _ = envs.step(action)
            step = {"obs": obs[:, -1], "action": action, "reward": reward.astype(np.float32), "terminated": terminated, "truncated": truncated}
            writer.append(step, final={"obs": after[:, -1]})  # The newest frames alone: those before them are in the table.
            obs = after
            if played >= WARM_UP:
                optimizer.zero_grad()
                loss(network, target, next(batches)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                follow(target, network)
    envs.close()
    return evaluated(target, stack)


def _envs(n: int, stack: int) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: FrameStackObservation(Keeper(), stack)] * n)


@torch.no_grad()
def _actions(network: nn.Module, obs: NDArray[np.uint8], random: float, rng: np.random.Generator) -> NDArray[np.int64]:
    best = network(torch.from_numpy(obs)).argmax(1).numpy()
    return np.where(rng.random(len(best)) < random, rng.integers(QUARTERS, size=len(best)), best)


def evaluated(network: nn.Module, stack: int = STACK, episodes: int = 20, seed: int = 12345) -> float:
    """The mean return of greedy episodes."""
    envs, rng = _envs(episodes, stack), np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    returns, playing = np.zeros(episodes), np.ones(episodes, bool)
    while playing.any():
        obs, reward, terminated, truncated, _ = envs.step(_actions(network, obs, 0, rng))
        returns += reward * playing
        playing &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())


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
        stacked = train(at)
        print(f"mean return of 20 episodes, of {BALLS}: {stacked:.1f} with stacks of {STACK} frames, after {time.monotonic() - began:.0f} s")
        print(f"with one frame: {train(at, table='one-frame', stack=1):.1f}")
