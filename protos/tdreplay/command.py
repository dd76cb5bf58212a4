"""What the commands ``tdreplay`` and ``tdreplay-server`` have in common."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

__all__ = ["command_line", "failures_in_one_line", "one_line", "version_option"]


def command_line(name: str, description: str) -> typer.Typer:
    """A command with the option --version. The caller adds the subcommands, and, for more options, a callback that has `version_option` too."""
    # No markup: it would take text in brackets for a style, and not show it.
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.callback(help=description)
    def options(version: bool = version_option(name)) -> None:
        """Options of the command as a whole."""

    return app


def version_option(name: str) -> Any:
    """The option --version of the command `name`."""

    def print_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version  # It takes a tenth of the time of `tdreplay health`, which does without.

            typer.echo(f"{name} {version('tdreplay')}")
            raise typer.Exit

    return typer.Option(False, "--version", help="Print the version and exit.", callback=print_version, is_eager=True)


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
