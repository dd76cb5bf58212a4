"""An actor as a command: ``python -m examples.cartpole.play ADDRESS``."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from examples.cartpole.actor import run_actor
from examples.cartpole.options import MAX_SEED, Address

__all__ = ["play"]


def play(
    address: Address,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Of environment and exploration; none: another one each time.")] = None,
) -> None:
    """Play CartPole-v1 until the command is ended, and push what happens into the replay buffer of a server.

    The newest weights come from the server too, and so does the pace, which the learner sets: any number of actors may play.
    """
    try:
        run_actor(address, secrets.randbelow(MAX_SEED) if seed is None else seed)
    except TimeoutError as error:
        typer.echo(f"play: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(play)
