"""Keeps env steps and gradient updates in a fixed proportion, across processes."""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Semaphore

__all__ = ["Pace"]

PATIENCE = 60.0
"""Seconds after which the other side counts as dead."""


class Pace:
    """Lets the actors push `warm_up` batches first, and then one for each round of updates of the learner, of which they may be `ahead`.

    So the actors take no more of the CPU than the learner can use, and the learner does not train on too few rows.
    """

    def __init__(self, context: SpawnContext, warm_up: int, ahead: int) -> None:
        self._warm_up = warm_up
        self._permits = context.Semaphore(warm_up + ahead)
        self._pushed = context.Semaphore(0)

    def await_permit(self) -> None:
        """Blocks an actor until it may push a batch.

        Raises:
            TimeoutError: the learner let nothing through for a minute.
        """
        _acquire(self._permits, "the learner")

    def report_push(self) -> None:
        """Tells the learner that a batch was stored."""
        self._pushed.release()

    def await_warm_up(self) -> None:
        """Blocks the learner until there are rows enough to begin.

        Raises:
            TimeoutError: no batch came for a minute.
        """
        for _ in range(self._warm_up):
            _acquire(self._pushed, "the actors")

    def await_push(self) -> None:
        """Blocks the learner until one more batch was stored, and permits another.

        Raises:
            TimeoutError: no batch came for a minute.
        """
        _acquire(self._pushed, "the actors")
        self._permits.release()


def _acquire(semaphore: Semaphore, whom: str) -> None:
    if not semaphore.acquire(timeout=PATIENCE):
        raise TimeoutError(f"waited {PATIENCE:.0f} s for {whom}")
