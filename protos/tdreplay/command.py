"""What the commands ``tdreplay`` and ``tdreplay-server`` have in common."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

__all__ = ["command_line", "failures_in_one_line", "one_line"]


def command_line(name: str, description: str) -> typer.Typer:
    """A command with the option --version. The caller adds the subcommands."""
    # No markup: it would take text in brackets for a style, and not show it.
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    def print_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version  # It takes a tenth of the time of `tdreplay health`, which does without.

            typer.echo(f"{name} {version('tdreplay')}")
            raise typer.Exit

    show_version: Any = typer.Option(False, "--version", help="Print the version and exit.", callback=print_version, is_eager=True)

    @app.callback(help=description)
    def options(show_version: bool = show_version) -> None:
        """Options of the command as a whole."""

    return app


@contextmanager
def failures_in_one_line(name: str, *errors: type[BaseException]) -> Iterator[None]:
    """Within this context these errors end the process, with status 1 and one line on standard error."""
    try:
        yield
    except errors as error:
        typer.echo(f"{name}: {one_line(error)}", err=True)
        sys.exit(1)


def one_line(text: object) -> str:
    """The text of an error on one line. Characters that would act on a terminal become spaces: the text may come from a server."""
    return "".join(character if character.isprintable() else " " for character in str(text)).strip()
