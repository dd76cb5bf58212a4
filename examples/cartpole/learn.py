"""The learner as a command: ``python -m examples.cartpole.learn ADDRESS``."""

from __future__ import annotations

import time

import typer
from rich.console import Console

from examples.cartpole.learner import learn
from examples.cartpole.options import Address, MaxSeconds, Seed
from examples.cartpole.progress import Display, print_summary
from examples.cartpole.tables import open_transitions
from examples.cartpole.training import Training

__all__ = ["train"]


def train(address: Address, seed: Seed = 0, max_seconds: MaxSeconds = 300.0) -> None:
    """Solve CartPole-v1 with what the actors push into the replay buffer of a server.

    A learner that starts where another one left off goes on from the weights that it published. The exit code is 0 when 20 greedy episodes have a
    mean return of 400 and 20 more confirm it, and 1 where the time is up before.
    """
    console = Console()
    began = time.monotonic()
    with open_transitions(address) as buffer, Display(console, max_seconds) as display:
        training = Training(buffer, began)
        for report in learn(address, seed):
            training.look()
            training.take(report)
            display.show(training)
            if training.solved or training.seconds > max_seconds:
                break
        seconds = training.seconds
    print_summary(console, training, seconds)
    raise typer.Exit(0 if training.solved else 1)


if __name__ == "__main__":
    typer.run(train)
