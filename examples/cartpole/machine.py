"""A training on one machine: the server, the actors and the learner, each a process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess

from examples.cartpole.actor import run_actor
from examples.cartpole.children import check_alive, pause, running
from examples.cartpole.learner import learn
from examples.cartpole.tables import open_transitions
from examples.cartpole.training import Training
from tdreplay_server import spawn_server

__all__ = ["Machine", "start_training"]

SECONDS_PER_LOOK = 0.2
SEEDS_PER_RUN = 1_000
"""So many seeds lie between those of one run and of the next, so that no two processes share one."""


@dataclass(frozen=True)
class Machine:
    """The processes of a training, and what is known of it."""

    training: Training
    reports: Connection
    children: Sequence[BaseProcess]

    def looks(self, max_seconds: float) -> Iterator[Training]:
        """Comes back with newer figures a few times a second, until CartPole is solved or the time is up.

        Raises:
            ChildDiedError: an actor or the learner ended.
            ServerUnavailableError: the server did.
        """
        training = self.training
        while not training.solved and training.seconds < max_seconds:
            pause(self.children, SECONDS_PER_LOOK)
            check_alive(self.children)
            training.look()
            while not training.solved and self.reports.poll():
                training.take(self.reports.recv())
            yield training


@contextmanager
def start_training(actors: int, seed: int) -> Iterator[Machine]:
    """Runs a server, the actors and a learner while the block is open."""
    began = time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(spawn_server())
        buffer = stack.enter_context(open_transitions(server.address))
        context = get_context("spawn")
        reports, sender = context.Pipe(duplex=False)
        children = _processes(context, server.address, sender, actors, seed * SEEDS_PER_RUN)
        stack.enter_context(running(children))
        yield Machine(Training(buffer, began), reports, children)


def _processes(context: SpawnContext, address: str, sender: Connection, actors: int, seed: int) -> list[BaseProcess]:
    """The learner and the actors, not yet started."""
    learner = context.Process(target=_run_learner, args=(address, seed, sender), name="learner", daemon=True)
    players = (
        context.Process(target=run_actor, args=(address, seed + number), name=f"actor {number}", daemon=True) for number in range(1, actors + 1)
    )
    return [learner, *players]


def _run_learner(address: str, seed: int, reports: Connection) -> None:
    for report in learn(address, seed):
        reports.send(report)
