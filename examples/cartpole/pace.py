"""Keeps env steps and gradient updates in a fixed proportion, across processes and machines."""

from __future__ import annotations

import time
from collections.abc import Callable

from examples.cartpole.tables import PublishedWeights
from tdreplay_client import RemoteReplayBuffer

__all__ = ["ROWS_PER_PUSH", "WARM_UP_ROWS", "Pace"]

ROWS_PER_PUSH = 32
WARM_UP = 32
"""Batches that are there before the learner begins."""
WARM_UP_ROWS = WARM_UP * ROWS_PER_PUSH
AHEAD = 2
"""Batches that the actors may push before the learner takes note of them."""
PATIENCE = 60.0
"""Seconds after which the other side counts as dead."""
SECONDS_PER_LOOK = 0.002


class Pace:
    """Lets the actors push a warm-up first, and then one batch for each round of updates, after which the learner publishes its weights.

    So the actors take no more of the CPU than the learner can use, and the learner does not train on too few rows. Both sides see how far the other
    one is by what it wrote. Actors who look at the same moment may all push: each can be one batch ahead of its turn.
    """

    def __init__(self, transitions: RemoteReplayBuffer, weights: PublishedWeights) -> None:
        self._transitions, self._weights = transitions, weights

    def await_turn(self) -> None:
        """Blocks an actor until it may push a batch. Weights were published by then.

        Raises:
            TimeoutError: the learner let nothing through for a minute.
        """
        _await(self._may_push, "the learner")

    def await_warm_up(self) -> None:
        """Blocks the learner until there are rows enough to begin.

        Raises:
            TimeoutError: they did not come within a minute.
        """
        _await(lambda: self._pushed >= WARM_UP, "the actors")

    def await_push(self) -> None:
        """Blocks the learner until there is a batch for the round that it is about to publish.

        Raises:
            TimeoutError: it did not come within a minute.
        """
        due = WARM_UP + self._weights.times
        _await(lambda: self._pushed >= due, "the actors")

    def _may_push(self) -> bool:
        rounds = self._weights.times
        return bool(rounds) and self._pushed < WARM_UP + AHEAD + rounds - 1

    @property
    def _pushed(self) -> int:
        return self._transitions.state().write_count // ROWS_PER_PUSH


def _await(condition: Callable[[], bool], whom: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:.0f} s for {whom}")
        time.sleep(SECONDS_PER_LOOK)
