"""The command ``tdreplay dashboard``."""

from __future__ import annotations

import importlib.util
import webbrowser
from typing import Annotated

import typer

from tdreplay.errors import UnimplementedError
from tdreplay_client.commands.calls import connected
from tdreplay_client.commands.options import Address, Timeout

__all__ = ["dashboard"]

NEEDED = ("starlette", "uvicorn")


def dashboard(
    address: Address = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where browsers find it; port 0 picks a free one.")] = "127.0.0.1:8265",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser of this machine.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other addresses than loopback too: everybody who reaches it sees all rows, unencrypted.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A host name by which browsers reach it, as behind a proxy; may be given several times.")
    ] = None,
    timeout: Timeout = 5.0,
) -> None:
    """Serve a web page to look inside a server: tables, rows, images, episodes. It only reads; the role reader is enough."""
    _check_extra()
    with connected(address, timeout) as connection:
        from tdreplay_client.dashboard.serving import Dashboard

        with Dashboard(connection, listen, insecure=insecure, hosts=allow_host or ()) as page:
            typer.echo(f"dashboard of {connection.address} on {page.url}")
            if show:
                webbrowser.open(page.url)
            page.run()


def _check_extra() -> None:
    """Passes where what the dashboard needs is installed.

    Raises:
        UnimplementedError: it is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnimplementedError(f"the dashboard needs {' and '.join(missing)}: pip install 'tdreplay[dashboard]'")
