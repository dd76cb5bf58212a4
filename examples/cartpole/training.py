"""What is known of a training while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from examples.cartpole.evaluation import Evaluation
from examples.cartpole.learner import Report
from tdreplay_client import RemoteReplayBuffer

__all__ = ["Training"]

NOTHING_YET = Report(updates=0, seconds=0.0, waiting=0.0, evaluating=0.0, evaluation=None)


@dataclass
class Training:
    """A training, seen from outside: its rows on the server, the rest in what the learner reports.

    Attributes:
        buffer: where the actors push.
        began: when it did, by the monotonic clock.
        rows: stored now.
        pushed: rows that the actors ever pushed.
        report: the learner's last one.
        evaluations: all of them, in order.
    """

    buffer: RemoteReplayBuffer
    began: float
    rows: int = 0
    pushed: int = 0
    report: Report = NOTHING_YET
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since it began: the start of the processes counts."""
        return time.monotonic() - self.began

    @property
    def updates(self) -> int:
        """Gradient updates that the learner reported."""
        return self.report.updates

    @property
    def mean_return(self) -> float:
        """Of the last evaluation; 0 before the first."""
        return self.evaluations[-1].mean if self.evaluations else 0.0

    @property
    def solved(self) -> bool:
        """Whether the last evaluation reached the goal."""
        return bool(self.evaluations) and self.evaluations[-1].solved

    def look(self) -> None:
        """Asks the server for its figures.

        Raises:
            ServerUnavailableError: it is not there.
        """
        state = self.buffer.state()
        self.rows, self.pushed = state.size, state.insert_count

    def take(self, report: Report) -> None:
        """Notes what the learner reports."""
        self.report = report
        if report.evaluation is not None:
            self.evaluations.append(report.evaluation)
