"""The command ``tdreplay status``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from tdreplay.command import one_line
from tdreplay.errors import DeadlineError, InvalidArgumentError, ResourceExhaustedError, ServerUnavailableError
from tdreplay.limits import check_number
from tdreplay_client.commands.calls import connected
from tdreplay_client.commands.options import Address, Timeout

if TYPE_CHECKING:
    from rich.console import Console

    from tdreplay_client.commands.looks import Look
    from tdreplay_client.transport.connection import Connection

__all__ = ["AWAY", "status"]

AWAY = (ServerUnavailableError, DeadlineError, ResourceExhaustedError)
"""What a server that is away, or has no room for another call, is to somebody who looks at it again and again."""
WATCH_SECONDS = 2.0
LEAST_SECONDS = 0.1
WIDE = 10_000
"""Columns of a page that goes to a file or to another program: nothing is cut."""


def status(
    seconds: Annotated[float | None, typer.Argument(help="With --watch: how often. [default: 2]", metavar="[SECONDS]", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object a look, on one line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    address: Address = "",
    timeout: Timeout = 30.0,
) -> None:
    """Say how a server does: its tables, who waits for whom, its clients, and limits near their end.

    FILL is the share of a table's capacity that is used. INSERTS/s and SAMPLES/s are rows a second over the last ten seconds, RATIO the samples per
    insert of this time. SENT and GOT count what a client sent and got in messages; what travels through shared memory is not in them.

    With --watch, a server that went away is waited for. Needs the role reader or admin, where the server asks for names.
    """
    if seconds is not None and not watch:
        raise InvalidArgumentError(f"SECONDS ({seconds}) says how often --watch looks: give --watch, too")
    pause = check_number(WATCH_SECONDS if seconds is None else seconds, "SECONDS", LEAST_SECONDS)
    with connected(address, timeout) as connection:
        show = _show_json if as_json else _shown_on(_console())
        show(_look(connection, waits=True))
        if watch:
            _watch(connection, pause, show)


def _look(connection: Connection, *, waits: bool) -> Look:
    from tdreplay_client.commands.looks import look

    return look(connection, waits=waits)


def _watch(connection: Connection, pause: float, show: Callable[[Look], None]) -> None:
    """Shows a look each `pause` seconds, until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(pause)
            try:
                show(_look(connection, waits=False))
            except AWAY as error:
                typer.echo(f"away at {time.strftime('%H:%M:%S')}: {one_line(error)}", err=True)


def _show_json(found: Look) -> None:
    typer.echo(json.dumps(found.to_json()))
    sys.stdout.flush()


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False, width=None if sys.stdout.isatty() else WIDE)


def _shown_on(console: Console) -> Callable[[Look], None]:
    """A function that shows a look: on a terminal in the place of the one before, else below it."""
    from tdreplay_client.commands.status_page import page

    shown = False

    def show(found: Look) -> None:
        nonlocal shown
        if shown and console.is_terminal:
            console.clear()
        elif shown:
            console.print()
        for line in page(found, console.width):
            console.print(line)
        console.file.flush()
        shown = True

    return show
