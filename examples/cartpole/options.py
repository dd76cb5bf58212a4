"""What the commands are told."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MAX_SEED", "Address", "MaxSeconds", "Seed"]

MAX_SEED = 1_000_000

Address = Annotated[str, typer.Argument(envvar="TDREPLAY_ADDRESS", help="Of the server: HOST:PORT or unix:PATH.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the environments, the exploration, the network and the batches' order.")]
MaxSeconds = Annotated[float, typer.Option(min=1, help="Give up after this time.")]
