"""The command ``tdreplay-server``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from tdreplay.errors import ReplayError
from tdreplay_server.allocator import keep_freed_memory
from tdreplay_server.config import ServerConfig
from tdreplay_server.logs import log_to_stderr
from tdreplay_server.server import ReplayServer
from tdreplay_server.spawn import READY

__all__ = ["app", "main"]

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tdreplay-server {version('tdreplay')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """The replay buffer server."""


def _described(name: str) -> str:
    field = ServerConfig.model_fields[name]
    return f"{field.description} [default: {field.default}]"


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help=_described("config"), show_default=False)] = None,
    address: Annotated[str | None, typer.Option(help=_described("address"), show_default=False)] = None,
    data_dir: Annotated[Path | None, typer.Option(help=_described("data_dir"), show_default=False)] = None,
    buffer_size: Annotated[int | None, typer.Option(help=_described("buffer_size"), show_default=False)] = None,
    storing_device: Annotated[str | None, typer.Option(help=_described("storing_device"), show_default=False)] = None,
    max_workers: Annotated[int | None, typer.Option(help=_described("max_workers"), show_default=False)] = None,
    max_streams: Annotated[int | None, typer.Option(help=_described("max_streams"), show_default=False)] = None,
    max_tables: Annotated[int | None, typer.Option(help=_described("max_tables"), show_default=False)] = None,
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", help="Also stop when standard input closes.")] = False,
) -> None:
    """Serve replay buffers until SIGTERM or SIGINT.

    Prints one line on standard output when it is ready, with the address that it listens on; its log goes to standard error. Each setting can also
    come from the environment (TDREPLAY_ADDRESS, ...) and from a TOML file; the command line counts first, then the environment, then the file.
    """
    given: dict[str, Any] = {
        "config": config,
        "address": address,
        "data_dir": data_dir,
        "buffer_size": buffer_size,
        "storing_device": storing_device,
        "max_workers": max_workers,
        "max_streams": max_streams,
        "max_tables": max_tables,
    }
    log_to_stderr()
    keep_freed_memory()
    # Blocked in all threads, and awaited: a handler runs in the main thread alone, and a signal that another thread takes does not wake that one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with ReplayServer(ServerConfig(**{name: value for name, value in given.items() if value is not None})) as server:
        typer.echo(f"{READY}{server.address}")
        sys.stdout.flush()
        signal.sigwait(STOP_SIGNALS)


def _stop_at_end_of_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Runs the command; a setting or an address that cannot be used is one line on standard error."""
    try:
        app()
    except ValidationError as error:
        for problem in error.errors():
            setting = ".".join(map(str, problem["loc"])) or "settings"
            typer.echo(f"tdreplay-server: {setting} ({problem['input']!r}): {problem['msg']}", err=True)
        sys.exit(2)
    except (ReplayError, OSError) as error:
        typer.echo(f"tdreplay-server: {error}", err=True)
        sys.exit(1)
