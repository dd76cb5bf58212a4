"""The demo's command: trains, shows how far it is, and says in the end how fast it went."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from examples.cartpole.children import ChildDiedError
from examples.cartpole.machine import start_training
from examples.cartpole.options import MaxSeconds, Seed
from examples.cartpole.plot import draw_learning_curve
from examples.cartpole.progress import Display, print_summary
from examples.cartpole.training import Training
from tdreplay.errors import ReplayError

__all__ = ["main"]


def main() -> None:
    """Runs the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # As an exception, so that all children are ended.
    typer.run(demo)


def demo(
    seed: Seed = 0,
    max_seconds: MaxSeconds = 300.0,
    output: Annotated[Path, typer.Option(dir_okay=False, help="The picture of the learning curve.")] = Path("learning_curve.png"),
    actors: Annotated[int, typer.Option(min=1, max=64, help="Processes that play.")] = 2,
) -> None:
    """Solve CartPole-v1 with a replay buffer in its own process.

    Actors push transitions into a tdreplay server, and a learner streams batches out of it, until 20 greedy episodes have a mean return of 400,
    and 20 more with the same weights confirm it. The exit code is 0 then, and 1 otherwise.

    The seed does not make two runs equal: in which order the processes come to the server stays open.
    """
    console = Console()
    try:
        training = _train(console, actors, seed, max_seconds)
    except (ChildDiedError, ReplayError) as error:
        console.print(f"The demo ended early: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if training.evaluations:
        draw_learning_curve(output, training.evaluations, f"Double DQN on CartPole-v1: {actors} actors, 1 learner, seed {seed}")
        console.print(f"The learning curve is in {output}.", markup=False, soft_wrap=True)
    raise typer.Exit(0 if training.solved else 1)


def _train(console: Console, actors: int, seed: int, max_seconds: float) -> Training:
    """Trains until the end, whatever it is; all processes have ended when it returns."""
    console.print(f"Starting a tdreplay server, {actors} actors and a learner.")
    with Display(console, max_seconds) as display, start_training(actors, seed) as machine:
        for look in machine.looks(max_seconds):
            display.show(look)
        seconds = machine.training.seconds
    print_summary(console, machine.training, seconds)
    return machine.training
