"""The command ``tdreplay-server``. What brings torch is imported by what needs it: help, and a wrong setting, are said at once."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdreplay.command import command_line, failures_in_one_line
from tdreplay.errors import FailedPreconditionError, OtherSettingsError, ReplayError
from tdreplay.limits import DEFAULT_TABLE
from tdreplay.progress import ProgressBar, reporting
from tdreplay_server.config_commands import config_app
from tdreplay_server.setting_options import NAME, given_settings, origin, said_of, setting_options
from tdreplay_server.spawn import READY
from tdreplay_server.system.allocator import keep_freed_memory
from tdreplay_server.system.descriptors import raise_file_limit
from tdreplay_server.system.garbage import loading
from tdreplay_server.system.logs import log_to_stderr
from tdreplay_server.token_commands import token_app

if TYPE_CHECKING:
    from tdreplay_server.storage.ring import Ring

__all__ = ["app", "main"]

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

app = command_line(NAME, "The replay buffer server.")


def serve(*, until_stdin_closes: bool, **given: str | bool | None) -> None:
    """Serve replay buffers until SIGTERM or SIGINT.

    Prints one line on standard output when it is ready, with the address that it listens on. Its log goes to standard error. Each setting can also
    come from its variable in the environment and from a TOML file. The command line counts first, then the environment, then the file. What is empty
    is not set.
    """
    log_to_stderr()
    said = said_of(given)
    settings = given_settings(said)
    keep_freed_memory()
    raise_file_limit()
    # Blocked in all threads, and awaited: a handler runs in the main thread alone, and a signal that another thread takes does not wake that one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with loading():
        from tdreplay_server.server import ReplayServer

    with _origins_of_tables(said), ReplayServer(settings, on_failure=_stop) as server:
        typer.echo(f"{READY}{server.address}")
        sys.stdout.flush()
        signal.sigwait(STOP_SIGNALS)
    if server.failure is not None:
        raise server.failure


def _serve_signature() -> inspect.Signature:
    stdin = Annotated[bool, typer.Option("--until-stdin-closes", help="Also stop when standard input closes.")]
    last = inspect.Parameter("until_stdin_closes", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=stdin)
    return inspect.Signature([*setting_options(), last])


serve.__signature__ = _serve_signature()  # type: ignore[attr-defined]  # typer reads it: the settings are named once, in ServerConfig.
serve.__annotations__ = {}
app.command()(serve)
app.add_typer(config_app, name="config")
app.add_typer(token_app, name="token")


@contextmanager
def _origins_of_tables(given: dict[str, Any]) -> Iterator[None]:
    """Within this context, the error that a table has other settings says where the settings come from."""
    try:
        yield
    except OtherSettingsError as error:
        place = ("tables", error.table, error.settings[0])
        raise FailedPreconditionError(f"{'.'.join(place)} from {origin(given, *place)}: {error}") from None


def _stop_at_end_of_input() -> None:
    sys.stdin.read()
    _stop()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _path(text: str) -> Path:
    """A path of the command line; a ~ that the shell left is the user's home."""
    if not text:
        raise typer.BadParameter("a path cannot be empty")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"{text} begins with ~ and a name that no user has") from None


DataDir = Annotated[Path, typer.Argument(help="The data directory of a server that is not running.", parser=_path, metavar="DATA_DIR")]
Checked = Annotated[Path, typer.Argument(help="A data directory, the directory of a table, or a checkpoint.", parser=_path, metavar="DIRECTORY")]
Table = Annotated[str, typer.Option(help="The table's name.")]


@app.command()
def verify(directory: Checked) -> None:
    """Check that a data directory or a checkpoint is what was written, and say what it holds.

    Of a checkpoint every byte is checked. Of a data directory every byte of the journals; its rows change all the time, and have no checksum. Nothing
    is changed. Exit status 1 where something is broken, with the first thing that is.
    """
    with loading():
        from tdreplay_server.checkpoints.verify import verified

    with closing(ProgressBar("verify", "bytes")) as bar:
        for line in verified(directory, bar):
            bar.close()
            typer.echo(line)


@app.command()
def restore(
    checkpoint: Annotated[Path, typer.Argument(help="The directory of the checkpoint.", parser=_path, metavar="CHECKPOINT")],
    data_dir: DataDir,
    table: Annotated[
        str | None, typer.Option(help="The table's name. [default: that of the table that the checkpoint was made of]", show_default=False)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the table where it is there.")] = False,
    buffer_size: Annotated[int | None, typer.Option(help="Another capacity, in rows: of more rows the last ones stay.", min=1)] = None,
) -> None:
    """Make a table out of a checkpoint. A checkpoint with a single wrong byte is refused, and nothing changes."""
    with loading():
        from tdreplay_server.checkpoints.restore import restore as restored
        from tdreplay_server.checkpoints.restore import table_of

    name = table_of(checkpoint) if table is None else table
    with reporting(True, "restore", "bytes") as progress:
        ring = restored(checkpoint, data_dir, name, replace=replace, buffer_size=buffer_size, progress=progress)
    _say(f"table {name}", ring)


@app.command()
def resize(
    data_dir: DataDir, buffer_size: Annotated[int, typer.Option(help="The new capacity, in rows.", min=1)], table: Table = DEFAULT_TABLE
) -> None:
    """Give a table another capacity: of more rows the last ones stay. Needs space for the rows twice over while it runs."""
    with loading():
        from tdreplay_server.checkpoints.restore import resize as resized

    with reporting(True, "resize", "bytes") as progress:
        ring = resized(data_dir, table, buffer_size, progress=progress)
    _say(f"table {table}", ring)


def _say(what: str, ring: Ring) -> None:
    typer.echo(f"{what}: {ring.size} rows, ids [{ring.oldest}, {ring.write_count}), buffer_size {ring.buffer_size}")


def main() -> None:
    """Runs the command; what goes wrong is one line on standard error."""
    with failures_in_one_line(NAME, ReplayError, OSError):
        app()
