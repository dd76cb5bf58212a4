"""The command ``tdreplay-server``. What brings torch is imported by what needs it: help, and a wrong setting, are said at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from tdreplay.errors import ReplayError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay_server.allocator import keep_freed_memory
from tdreplay_server.config import ServerConfig
from tdreplay_server.garbage import loading
from tdreplay_server.logs import log_to_stderr
from tdreplay_server.spawn import READY

if TYPE_CHECKING:
    from tdreplay_server.ring import Ring

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
    durability: Annotated[str | None, typer.Option(help=_described("durability"), show_default=False)] = None,
    max_workers: Annotated[int | None, typer.Option(help=_described("max_workers"), show_default=False)] = None,
    max_streams: Annotated[int | None, typer.Option(help=_described("max_streams"), show_default=False)] = None,
    max_tables: Annotated[int | None, typer.Option(help=_described("max_tables"), show_default=False)] = None,
    shared_memory_dir: Annotated[Path | None, typer.Option(help=_described("shared_memory_dir"), show_default=False)] = None,
    grace_seconds: Annotated[float | None, typer.Option(help=_described("grace_seconds"), show_default=False)] = None,
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
        "durability": durability,
        "max_workers": max_workers,
        "max_streams": max_streams,
        "max_tables": max_tables,
        "shared_memory_dir": shared_memory_dir,
        "grace_seconds": grace_seconds,
    }
    settings = ServerConfig(**{name: value for name, value in given.items() if value is not None})
    log_to_stderr()
    keep_freed_memory()
    # Blocked in all threads, and awaited: a handler runs in the main thread alone, and a signal that another thread takes does not wake that one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with loading():
        from tdreplay_server.server import ReplayServer

    with ReplayServer(settings, on_failure=_stop) as server:
        typer.echo(f"{READY}{server.address}")
        sys.stdout.flush()
        signal.sigwait(STOP_SIGNALS)
    if server.failure is not None:
        raise server.failure


def _stop_at_end_of_input() -> None:
    sys.stdin.read()
    _stop()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


DataDir = Annotated[Path, typer.Argument(help="The data directory of a server that is not running.")]
Table = Annotated[str, typer.Option(help="The table's name.")]


@app.command()
def verify(directory: Annotated[Path, typer.Argument(help="A data directory, the directory of a table, or a checkpoint.")]) -> None:
    """Check that a data directory or a checkpoint is what was written, and say what it holds.

    Of a checkpoint every byte is checked. Of a data directory every byte of the journals; its rows change all the time, and have no checksum. Nothing
    is changed. Exit status 1 where something is broken, with the first thing that is.
    """
    with loading():
        from tdreplay_server.verify import verified

    for line in verified(directory):
        typer.echo(line)


@app.command()
def restore(
    checkpoint: Annotated[Path, typer.Argument(help="The directory of the checkpoint.")],
    data_dir: DataDir,
    table: Table = DEFAULT_TABLE,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the table where it is there.")] = False,
    buffer_size: Annotated[int | None, typer.Option(help="Another capacity, in rows: of more rows the last ones stay.", min=1)] = None,
) -> None:
    """Make a table out of a checkpoint. A checkpoint with a single wrong byte is refused, and nothing changes."""
    with loading():
        from tdreplay_server.restore import restore as restored

    _say(f"table {table}", restored(checkpoint, data_dir, table, replace=replace, buffer_size=buffer_size))


@app.command()
def resize(
    data_dir: DataDir, buffer_size: Annotated[int, typer.Option(help="The new capacity, in rows.", min=1)], table: Table = DEFAULT_TABLE
) -> None:
    """Give a table another capacity: of more rows the last ones stay. Needs space for the rows twice over while it runs."""
    with loading():
        from tdreplay_server.restore import resize as resized

    _say(f"table {table}", resized(data_dir, table, buffer_size))


def _say(what: str, ring: Ring) -> None:
    typer.echo(f"{what}: {ring.size} rows, ids [{ring.oldest}, {ring.write_count}), buffer_size {ring.buffer_size}")


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
