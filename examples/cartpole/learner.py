"""The learner: streams batches out of the replay buffer and trains a double DQN with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import count

import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional

from examples.cartpole.evaluation import Evaluation, Evaluator
from examples.cartpole.network import make_network
from examples.cartpole.pace import Pace
from examples.cartpole.tables import PublishedWeights, open_transitions
from tdreplay.errors import ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer

__all__ = ["BATCH_SIZE", "UPDATES_PER_PUSH", "Report", "learn"]

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
TARGET_RATE = 0.01
"""How far the target network moves towards the trained one in an update."""
MAX_GRADIENT_NORM = 10.0

UPDATES_PER_PUSH = 16
UPDATES_PER_REPORT = 16
UPDATES_PER_EVALUATION = 64


@dataclass(frozen=True)
class Report:
    """What the learner has done so far.

    Attributes:
        updates: gradient updates; each took one batch.
        seconds: since the first batch was asked for.
        waiting: seconds of them spent waiting for a batch.
        evaluating: seconds of them spent playing greedy episodes.
        evaluation: of the weights of this moment; None where there was none.
    """

    updates: int
    seconds: float
    waiting: float
    evaluating: float
    evaluation: Evaluation | None


def learn(address: str, seed: int) -> Iterator[Report]:
    """Trains for ever, from the published weights on where there are any, publishing newer ones, and says how far it is now and then.

    The seed decides the first weights, the order of the batches, and the start states of the evaluations.
    """
    torch.set_num_threads(1)
    evaluator = Evaluator(seed)
    with open_transitions(address) as buffer, PublishedWeights(address) as weights:
        dqn, pace = DoubleDQN(first_network(weights, seed)), Pace(buffer, weights)
        yield Report(0, 0.0, 0.0, 0.0, evaluator.evaluate(dqn.network, buffer.state().insert_count))
        pace.await_warm_up()
        batches, evaluating = TimedBatches(stream(buffer, seed)), 0.0
        for updates, batch in enumerate(batches, 1):
            dqn.update(batch)
            if updates % UPDATES_PER_PUSH == 0:
                pace.await_push()
                weights.publish(dqn.network)
            if updates % UPDATES_PER_REPORT == 0:
                due = updates % UPDATES_PER_EVALUATION == 0
                before = batches.seconds
                evaluation = evaluator.evaluate(dqn.network, buffer.state().insert_count) if due else None
                evaluating += batches.seconds - before
                yield Report(updates, batches.seconds, batches.waiting, evaluating, evaluation)


def first_network(weights: PublishedWeights, seed: int) -> nn.Sequential:
    """A network with the published weights; where there are none, one with random weights, which are published."""
    torch.manual_seed(seed)
    network = make_network()
    if weights.times:
        weights.load(network)
    else:
        weights.publish(network)
    return network


def stream(buffer: RemoteReplayBuffer, seed: int) -> Iterator[TensorDict]:
    """Batches for ever: one shuffled epoch over the stored rows after the other, each over the rows that are there when it begins.

    An epoch ends early where the server is lost; the next one begins when it is back.
    """
    for epoch in count():
        batches = buffer.create_epoch_iterator(BATCH_SIZE, shuffle=True, seed=seed + epoch, drop_last=True)
        with suppress(ServerUnavailableError):
            yield from batches


class TimedBatches:
    """Iterates over batches, and measures how long that takes."""

    def __init__(self, batches: Iterator[TensorDict]) -> None:
        self._batches = batches
        self._began = time.perf_counter()
        self.waiting = 0.0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    def __iter__(self) -> Iterator[TensorDict]:
        return self

    def __next__(self) -> TensorDict:
        asked = time.perf_counter()
        batch = next(self._batches)
        self.waiting += time.perf_counter() - asked
        return batch


class DoubleDQN:
    """Deep Q-learning where the trained network picks the next action and a slower target network values it (van Hasselt et al., 2016)."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._target = deepcopy(self.network).requires_grad_(False)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)

    def update(self, batch: TensorDict) -> None:
        """One gradient step."""
        values = self.network(batch["observation"]).gather(1, batch["action"][:, None])[:, 0]
        loss = functional.smooth_l1_loss(values, self._returns(batch))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped.
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._follow()

    @torch.no_grad()
    def _returns(self, batch: TensorDict) -> torch.Tensor:
        best = self.network(batch["next_observation"]).argmax(1, keepdim=True)
        following = self._target(batch["next_observation"]).gather(1, best)[:, 0]
        returns: torch.Tensor = batch["reward"] + batch["discount"] * following
        return returns

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self._target.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, TARGET_RATE)
