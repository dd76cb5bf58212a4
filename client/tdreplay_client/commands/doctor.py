"""The command ``tdreplay doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tdreplay.command import one_line
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_seconds
from tdreplay_client.commands.options import Address, Timeout, found_server

if TYPE_CHECKING:
    from tdreplay_client.commands.check import Check

__all__ = ["doctor"]

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: Annotated[str, typer.Option(metavar="PATH", help="A server's data directory on this host: look at its disk, too.")] = "",
    address: Address = "",
    timeout: Timeout = 5.0,
) -> None:
    """Look for what is in the way between this host and a server: versions, memory, limits, proxies, the network, TLS, the token.

    Each check is 'ok', 'warning' or 'failed', with what was found, and what to do about it. Exit status 1 where one failed.
    """
    checks = list(_checks(address, data_dir, check_seconds(timeout, "timeout")))
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks]))
    elif sys.stdout.isatty():
        _draw(checks)
    else:
        _print(checks)
    raise typer.Exit(any(check.state == "failed" for check in checks))


def _checks(address: str, data_dir: str, seconds: float) -> Iterator[Check]:
    from tdreplay_client.commands.check import failed  # Here, as what follows: `tdreplay health` has no time for it.
    from tdreplay_client.commands.host_checks import host_checks, proxy_check
    from tdreplay_client.commands.server_checks import server_checks

    yield from host_checks(data_dir)
    try:
        target = found_server(address)
    except InvalidArgumentError as error:
        yield failed("settings", str(error), "mend the argument, the variable or the profile that it names")
        return
    yield proxy_check(target.address)
    yield from server_checks(target, seconds)


def _print(checks: list[Check]) -> None:
    """A line for each check, and below it what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{check.state:<7}  {check.name:<{width}}  {one_line(check.found)}")
        if check.fix:
            typer.echo(f"{'':<7}  {'':<{width}}  -> {one_line(check.fix)}")


def _draw(checks: list[Check]) -> None:
    """The same as a table on a terminal, in colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "found", "what to do", show_lines=False)
    for check in checks:
        cells = (check.name, one_line(check.found), one_line(check.fix))
        table.add_row(Text(check.state, STYLES[check.state]), *map(Text, cells))
    Console().print(table)
