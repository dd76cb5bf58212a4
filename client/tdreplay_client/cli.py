"""The command ``tdreplay``."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from tdreplay.command import command_line, failures_in_one_line, one_line, version_option
from tdreplay.environment import CLIENT_SETTINGS, environment_name
from tdreplay.errors import ReplayError
from tdreplay.limits import DEFAULT_TABLE, check_seconds
from tdreplay_client.commands import files
from tdreplay_client.commands.calls import buffer_at
from tdreplay_client.commands.dashboard import dashboard
from tdreplay_client.commands.doctor import doctor
from tdreplay_client.commands.options import Address, Profile, Timeout, choose_profile, found_server
from tdreplay_client.commands.status import status
from tdreplay_client.commands.table import table
from tdreplay_client.commands.top import top
from tdreplay_client.transport.health import serves

__all__ = ["app", "main"]

NAME = "tdreplay"

VARIABLES = ", ".join(map(environment_name, CLIENT_SETTINGS))
DESCRIPTION = f"""The client of a replay buffer server.

Where the server is, and what it is shown, also comes from the environment: {VARIABLES}. 'tdreplay doctor' says what is in the way to a server.
"""

app = command_line(NAME, DESCRIPTION)
app.add_typer(table, name="table")
app.command()(dashboard)
app.command()(files.export)
app.command("import")(files.import_)
app.command()(status)
app.command()(doctor)
app.command()(top)


@app.callback(help=DESCRIPTION)
def options(profile: Profile = "", _version: bool = version_option(NAME)) -> None:
    """Options of the command as a whole."""
    choose_profile(profile)


@app.command()
def checkpoint(
    name: Annotated[str, typer.Argument(help="1 to 64 letters, digits, '_' or '-'. One of that name is replaced.")],
    address: Address = "",
    table: Annotated[str, typer.Option(help="The table's name.")] = DEFAULT_TABLE,
    timeout: Timeout = 30.0,
) -> None:
    """Write a checkpoint of a table to the server's disk, while traffic goes on.

    Prints one line on standard output when it is whole, with its path on the server. Where standard error is a terminal, a bar there shows how far it
    is.
    """
    with buffer_at(address, timeout, table) as buffer:
        made = buffer.checkpoint(name, progress=True)
    typer.echo(f"checkpoint {one_line(made.path)}: {made.rows} rows, {made.bytes} bytes")


@app.command()
def health(
    address: Address = "",
    timeout: Timeout = 3.0,
    service: Annotated[str, typer.Option(help="A gRPC service of the server; empty: the server as a whole.")] = "",
) -> None:
    """Ask a server whether it serves (grpc.health.v1). Exit status 0 where it does, else 1; one line says what it answered."""
    where, access = found_server(address, token="")  # Health asks nobody for a token.
    healthy, answer = serves(where, check_seconds(timeout, "timeout"), service, access)
    typer.echo(one_line(f"{where} {answer}"), err=not healthy)
    raise typer.Exit(not healthy)


def main() -> None:
    """Runs the command; what goes wrong is one line on standard error."""
    logging.getLogger("tdreplay").addHandler(logging.NullHandler())  # The client's log would be a second one.
    with failures_in_one_line(NAME, ReplayError, OSError):
        app()
