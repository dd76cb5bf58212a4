"""A recurrent DQN, and one without a memory on the same data: ``python -m examples.recurrent_dqn [ADDRESS]``.

The environment is CartPole-v1 without its velocities: what to do cannot be seen in one observation. The recurrent agent trains on sequences, whose
first steps only warm its state up, and gives each sequence a priority (R2D2: Kapturowski et al., ICLR 2019). The other agent trains on transitions.
Both are made of the steps of one table when they are drawn, and both agents play half of these steps.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn

from tdreplay_client import Prioritized, RemoteReplayBuffer, Sequences, Transitions, importance_weights, sequence_priorities
from tdreplay_server import ReplayServer, ServerConfig

__all__ = ["Positions", "Returns", "train"]

ENVS, STEPS, WARM_UP = 8, 8_000, 1000
LENGTH, BURN_IN, SEQUENCES, TRANSITIONS = 8, 4, 32, 128
HIDDEN, GAMMA, TAU, LEARNING_RATE = 64, 0.98, 0.02, 3e-3
EPISODES = 10
SCALE = np.array([0.5, 0.05], np.float32)
Observations = NDArray[np.float32]


class Positions(gymnasium.ObservationWrapper[Observations, np.int64, Observations]):
    """Where the cart and the pole are, as shares of what ends an episode: float32 [2]. Their velocities are left out."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)

    def observation(self, observation: Observations) -> Observations:
        """The positions of what CartPole observes."""
        return observation[[0, 2]] / SCALE


class Returns(NamedTuple):
    """The mean returns of greedy episodes, at most 500.

    Attributes:
        recurrent: Of the agent with a memory.
        feed_forward: Of the one without.
    """

    recurrent: float
    feed_forward: float


class Memory(nn.Module):
    """The values of the two actions, from all observations of the episode so far."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(2, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations [n, 2], and the states [n, HIDDEN] before them -> the values [n, 2], and the states after them."""
        state = self.cell(obs, state)
        return self.head(state), state

    def states(self, batch: TensorDict) -> torch.Tensor:
        """The states after the steps of sequences, [n, T, HIDDEN]. No gradient goes through the burn-in."""
        state, found = torch.zeros(len(batch), HIDDEN), []
        for place, (obs, is_init) in enumerate(zip(batch["obs"].unbind(1), batch["is_init"].unbind(1), strict=True)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and place >= BURN_IN):
                state = self.cell(obs, state.masked_fill(is_init.unsqueeze(1), 0))
            found.append(state)
        return torch.stack(found, 1)


class Reflex(nn.Module):
    """The values of the two actions, from one observation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))

    def forward(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `Memory`, but the state says nothing."""
        return self.layers(obs), state


Network = TypeVar("Network", Memory, Reflex)


class Learner(Generic[Network]):
    """A network, and a copy of it that follows slowly: what it learns towards, and what is evaluated in the end."""

    def __init__(self, network: Network) -> None:
        self.network: Network = network
        self.target: Network = copy.deepcopy(network)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)

    def step(self, loss: torch.Tensor) -> None:
        """Goes one step down the gradient of a loss."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 10)
        self._optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, TAU)


def learn_sequences(learner: Learner[Memory], batch: TensorDict) -> torch.Tensor:
    """Trains on `Sequences`, and gives their priorities, [n]."""
    network, target = learner.network, learner.target
    values = network.head(network.states(batch)).gather(2, batch["action"].unsqueeze(2)).squeeze(2)
    with torch.no_grad():
        after, _ = target(batch["next", "obs"].flatten(0, 1), target.states(batch).flatten(0, 1))
        wanted = batch["reward"] + GAMMA * after.amax(1).view_as(values) * ~batch["terminated"]
    trained = batch["mask"] & ~batch["burn_in"]
    losses = nn.functional.smooth_l1_loss(values, wanted, reduction="none") * trained
    learner.step((importance_weights(batch, beta=0.6).unsqueeze(1) * losses).sum() / trained.sum())
    return sequence_priorities(values - wanted, trained)


def learn_transitions(learner: Learner[Reflex], batch: TensorDict) -> None:
    """Trains on `Transitions`."""
    nothing = torch.zeros(len(batch), HIDDEN)
    values = learner.network(batch["obs"], nothing)[0].gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        wanted = batch["next", "reward"] + batch["discount"] * learner.target(batch["next", "obs"], nothing)[0].amax(1)
    learner.step(nn.functional.smooth_l1_loss(values, wanted))


class Player:
    """Chooses actions in environments, and keeps a state for each of them."""

    def __init__(self, network: nn.Module, environments: int) -> None:
        self._network, self._state = network, torch.zeros(environments, HIDDEN)

    @torch.no_grad()
    def actions(self, obs: Observations, began: NDArray[np.bool_], rng: np.random.Generator, random: float = 0) -> NDArray[np.int64]:
        """The best action in each environment, or a random one as often as `random` says. `began`: where these are first observations."""
        values, self._state = self._network(torch.from_numpy(obs), self._state.masked_fill(torch.from_numpy(began).unsqueeze(1), 0))
        return np.where(rng.random(len(obs)) < random, rng.integers(2, size=len(obs)), values.argmax(1).numpy())


def train(address: str, steps: int = STEPS, *, seed: int = 0, table: str = "positions") -> Returns:
    """Plays so many steps, trains both agents meanwhile, and gives what they reach."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    recurrent, feed_forward = Learner(Memory()), Learner(Reflex())
    players = [Player(network, ENVS // 2) for network in (recurrent.network, feed_forward.network)]
    envs, began, ended = SyncVectorEnv([Positions] * ENVS), np.ones(ENVS, bool), np.zeros(ENVS, bool)
    obs, _ = envs.reset(seed=seed)
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=steps + ENVS, sampler=Prioritized(alpha=0.6), trajectories=True, seed=seed)
    sequences = Sequences(LENGTH, burn_in=BURN_IN, next_obs=True)
    with (
        buffer,
        buffer.trajectory_writer(ENVS, autoreset="next_step") as writer,
        buffer.stream(SEQUENCES, view=sequences) as batches,
        buffer.stream(TRANSITIONS, view=Transitions(gamma=GAMMA), uniform=True) as transitions,
    ):
        for played in range(0, steps, ENVS):
            random = max(0.05, 1 - 4 * played / steps)
            halves = zip(players, np.split(obs, 2), np.split(began, 2), strict=True)
            action = np.concatenate([player.actions(half, new, rng, random) for player, half, new in halves])
            after, reward, terminated, truncated, _ = envs.step(action)
            step = {"obs": obs, "action": action, "reward": reward.astype(np.float32), "terminated": terminated, "truncated": truncated}
            writer.append(step, final={"obs": after})
            obs, began, ended = after, ended, terminated | truncated  # An environment begins again in the step after its end.
            if played >= WARM_UP:
                batch = next(batches)
                batches.update_priorities(batch, learn_sequences(recurrent, batch))
                learn_transitions(feed_forward, next(transitions))
    envs.close()
    return Returns(evaluated(recurrent.target), evaluated(feed_forward.target))


def evaluated(network: nn.Module, seed: int = 12345) -> float:
    """The mean return of greedy episodes."""
    envs, player, rng = SyncVectorEnv([Positions] * EPISODES), Player(network, EPISODES), np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    playing, returns = np.ones(EPISODES, bool), np.zeros(EPISODES)
    began = playing
    while playing.any():
        obs, reward, terminated, truncated, _ = envs.step(player.actions(obs, began, rng))
        returns += reward * playing
        playing, began = playing & ~(terminated | truncated), np.zeros(EPISODES, bool)
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
    torch.set_num_threads(1)  # The networks are small: more threads would wait for each other.
    with served(sys.argv[1] if len(sys.argv) > 1 else None) as at:
        began = time.monotonic()
        returns = train(at)
        print(f"mean returns of {EPISODES} episodes, of 500: {returns.recurrent:.0f} with a memory, {returns.feed_forward:.0f} without")
        print(f"after {STEPS:,} steps and {time.monotonic() - began:.0f} s")
