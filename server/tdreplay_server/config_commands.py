"""``tdreplay-server config``: check settings without a start, and show them with where they come from."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tdreplay.command import one_line
from tdreplay_server.config_text import shown_settings, to_toml
from tdreplay_server.setting_options import NAME, given_settings, origin, said_of, setting_options
from tdreplay_server.system.garbage import loading
from tdreplay_server.system.logs import log_to_stderr

__all__ = ["config_app"]

config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check settings without a start, and show where they come from.")


def check(**given: str | bool | None) -> None:
    """Check that a server could be started with these settings now. Takes the options, the environment and the file of 'serve'.

    Each problem is a line on standard error, with where the setting comes from: one that breaks its rule, files and directories that cannot be used,
    certificates that expired, tables that are there with other settings. Exit status 2 where there is one, else 0. What starts with 'warning' does
    not prevent a start with these settings, such as an address or a data directory that a server has just now. Nothing is changed.
    """
    log_to_stderr()
    said = said_of(given)
    config = given_settings(said)
    with loading():
        from tdreplay_server.start_check import start_findings
    findings = list(start_findings(config))
    for finding in findings:
        where = f"{'.'.join(finding.place)} from {origin(said, *finding.place)}"
        typer.echo(one_line(f"{NAME}: {'' if finding.prevents else 'warning: '}{where}: {finding.text}"), err=True)
    if any(finding.prevents for finding in findings):
        sys.exit(2)
    typer.echo("a server can be started with these settings")


def show(*, toml: bool, **given: str | bool | None) -> None:
    """Show each setting, its value, and where it comes from: an option, the environment, a line of the file, or the default.

    Takes the options, the environment and the file of 'serve'. Keys, tokens and certificates are shown as the paths of their files.
    """
    log_to_stderr()
    said = said_of(given)
    config = given_settings(said)
    if toml:
        typer.echo(to_toml(config), nl=False)
        return
    lines = [(".".join(place), value, origin(said, *place)) for place, value in shown_settings(config)]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for name, value, where in lines:
        typer.echo(one_line(f"{name.ljust(widths[0])}  {value.ljust(min(widths[1], 40))}  {where}"))


def _with_settings(command: Callable[..., None], *more: inspect.Parameter) -> Callable[..., None]:
    """The command with an option for each setting."""
    described: Any = command
    described.__signature__, described.__annotations__ = inspect.Signature([*setting_options(), *more]), {}
    return command


TOML = Annotated[bool, typer.Option("--toml", help="Print a TOML file that gives the same server, wherever it is started.")]

config_app.command()(_with_settings(check))
config_app.command()(_with_settings(show, inspect.Parameter("toml", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=TOML)))
