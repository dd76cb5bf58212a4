"""A training as a whole: the server, the actors and the learner, and what is known of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from examples.cartpole.actor import ROWS_PER_PUSH, run_actor
from examples.cartpole.children import check_alive, pause, running
from examples.cartpole.evaluation import Evaluation
from examples.cartpole.learner import Report, run_learner
from examples.cartpole.network import WeightsFile, make_network
from examples.cartpole.pace import Pace
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server

__all__ = ["CAPACITY", "Training", "start_training"]

CAPACITY = 50_000
WARM_UP_ROWS = 1_024
SECONDS_PER_LOOK = 0.2
SEEDS_PER_RUN = 1_000
"""So many seeds lie between those of one run and of the next, so that no two processes share one."""
NOTHING_YET = Report(updates=0, seconds=0.0, waiting=0.0, evaluation=None)


@dataclass
class Training:
    """A training that runs, seen from outside: its rows on the server, the rest in what the learner reports.

    Attributes:
        rows: stored now.
        pushed: rows that the actors ever pushed.
        pushing_since: what `seconds` was when the last look found none of them.
        report: the learner's last one.
        evaluations: all of them, in order.
    """

    buffer: RemoteReplayBuffer
    reports: Connection
    children: Sequence[BaseProcess]
    began: float
    rows: int = 0
    pushed: int = 0
    pushing_since: float = 0.0
    report: Report = NOTHING_YET
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since the demo began: the start of the processes counts."""
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

    def looks(self, max_seconds: float) -> Iterator[Training]:
        """Comes back with newer figures a few times a second, until CartPole is solved or the time is up.

        Raises:
            ChildDiedError: an actor or the learner ended.
            ServerUnavailableError: the server did.
        """
        while not self.solved and self.seconds < max_seconds:
            pause(self.children, SECONDS_PER_LOOK)
            check_alive(self.children)
            self._look()
            yield self

    def _look(self) -> None:
        state = self.buffer.state()
        self.rows, self.pushed = state.size, state.write_count
        if not self.pushed:
            self.pushing_since = self.seconds
        while not self.solved and self.reports.poll():
            self._take(self.reports.recv())

    def _take(self, report: Report) -> None:
        self.report = report
        if report.evaluation is not None:
            self.evaluations.append(report.evaluation)


@contextmanager
def start_training(actors: int, seed: int) -> Iterator[Training]:
    """Runs a server, the actors and a learner, each a process, while the block is open."""
    began = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdreplay-cartpole-")))
        weights = _first_weights(directory, seed)
        config = ServerConfig(address="127.0.0.1:0", data_dir=directory / "server", buffer_size=CAPACITY)
        server = stack.enter_context(spawn_server(config))
        buffer = stack.enter_context(RemoteReplayBuffer(server.address))
        context = get_context("spawn")
        reports, sender = context.Pipe(duplex=False)
        pace = Pace(context, WARM_UP_ROWS // ROWS_PER_PUSH, ahead=actors)
        children = _processes(context, (server.address, weights, pace), sender, actors, seed * SEEDS_PER_RUN)
        stack.enter_context(running(children))
        yield Training(buffer, reports, children, began)


def _first_weights(directory: Path, seed: int) -> Path:
    path = directory / "weights.safetensors"
    torch.manual_seed(seed)
    WeightsFile(path).publish(make_network())
    return path


def _processes(context: SpawnContext, shared: tuple[str, Path, Pace], sender: Connection, actors: int, seed: int) -> list[BaseProcess]:
    """The learner and the actors, not yet started. They need `shared` to stay referenced here: its semaphores go with their last reference."""
    learner = context.Process(target=run_learner, args=(*shared, seed, sender), name="learner", daemon=True)
    players = (
        context.Process(target=run_actor, args=(*shared, seed + number), name=f"actor {number}", daemon=True) for number in range(1, actors + 1)
    )
    return [learner, *players]
