"""The options that the commands of the client have in common."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tdreplay.environment import environment_name, unknown_names
from tdreplay_client.transport.addresses import check_target

__all__ = ["Address", "Timeout", "found_address"]

LOCAL = "127.0.0.1:50051"
VARIABLE = environment_name("address")

Address = Annotated[str, typer.Option(help=f"Of the server: HOST:PORT or unix:PATH. [env: {VARIABLE}] [default: {LOCAL}]", show_default=False)]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="How long the server may take to answer, or to say how far it is.")]


def found_address(address: str) -> str:
    """The address to use: as given, or from the environment, or the usual one. One that is empty is not given.

    Raises:
        InvalidArgumentError: it is no address, or the environment has a misspelt variable.
    """
    unknown_names(os.environ, ["address"])
    return check_target(address or os.environ.get(VARIABLE) or LOCAL)
