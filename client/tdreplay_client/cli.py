"""The command ``tdreplay``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from tdreplay.errors import ReplayError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay_client.health import serves

if TYPE_CHECKING:
    from tdreplay.api import Progress

__all__ = ["app", "main"]

Address = Annotated[str, typer.Option(envvar="TDREPLAY_ADDRESS", help="Of the server: HOST:PORT or unix:PATH.")]
LOCAL = "127.0.0.1:50051"

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tdreplay {version('tdreplay')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """The client of a replay buffer server."""


@app.command()
def checkpoint(
    name: Annotated[str, typer.Argument(help="1 to 64 letters, digits, '_' or '-'. One of that name is replaced.")],
    address: Address = LOCAL,
    table: Annotated[str, typer.Option(help="The table's name.")] = DEFAULT_TABLE,
    timeout: Annotated[float, typer.Option(help="Seconds that the server may take for each sign of its progress.")] = 30.0,
) -> None:
    """Write a checkpoint of a table to the server's disk, while traffic goes on.

    Prints one line on standard output when it is whole, with its path on the server; how far it is goes to standard error, where that is a terminal.
    """
    from tdreplay_client.buffer import RemoteReplayBuffer  # Here: it brings torch, for which `health` has no time.

    with RemoteReplayBuffer(address, table=table, timeout=timeout) as buffer, _progress() as progress:
        made = buffer.checkpoint(name, progress=progress)
    typer.echo(f"checkpoint {made.path}: {made.rows} rows, {made.bytes} bytes")


@app.command()
def health(
    address: Address = LOCAL,
    timeout: Annotated[float, typer.Option(help="Seconds that the server may take to answer.", min=0.001)] = 3.0,
    service: Annotated[str, typer.Option(help="A gRPC service of the server; empty: the server as a whole.")] = "",
) -> None:
    """Ask a server whether it serves (grpc.health.v1). Exit status 0 where it does, else 1; one line says what it answered."""
    healthy, answer = serves(address, timeout, service)
    typer.echo(f"{address} {answer}", err=not healthy)
    raise typer.Exit(not healthy)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """Draws a bar on standard error; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with typer.progressbar(length=1, label="checkpoint", file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.length = max(1, total)
            bar.update(done - bar.pos)

        yield show


def main() -> None:
    """Runs the command; what goes wrong is one line on standard error."""
    try:
        app()
    except (ReplayError, OSError) as error:
        typer.echo(f"tdreplay: {error}", err=True)
        sys.exit(1)
