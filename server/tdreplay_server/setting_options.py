"""The settings as options of a command, with where each one comes from."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from tdreplay.command import one_line
from tdreplay.environment import environment_name
from tdreplay.toml_file import line_of
from tdreplay_server.config import ServerConfig, not_empty

__all__ = ["DEFAULT", "NAME", "given_settings", "origin", "said_of", "setting_options"]

NAME = "tdreplay-server"
DEFAULT = "default"
"""The origin of a setting that nobody set."""


def setting_options() -> list[inspect.Parameter]:
    """An option for each setting, with the setting's own text: they are named once, in `ServerConfig`."""
    return [_option(name) for name in ServerConfig.model_fields]


def _option(name: str) -> inspect.Parameter:
    field = ServerConfig.model_fields[name]
    default = "" if field.default is None else f" [default: {field.default}]"
    if field.annotation is bool:
        flag = typer.Option(
            f"--{name.replace('_', '-')}/--no-{name.replace('_', '-')}", help=f"{field.description} [env: {environment_name(name)}] [default: False]"
        )
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[bool | None, flag])
    kinds = {"int": "INTEGER", "float": "SECONDS", "Path": "PATH", "Mapping": "JSON"}
    kind = next((word for of, word in kinds.items() if of in str(field.annotation)), "TEXT")
    option = typer.Option(f"--{name.replace('_', '-')}", help=f"{field.description} [env: {environment_name(name)}]{default}", metavar=kind)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])


def said_of(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given. One that is empty is not."""
    return {name: value for name, value in given.items() if value not in (None, "")}


def given_settings(said: dict[str, Any]) -> ServerConfig:
    """The settings; each that cannot be is a line on standard error that says where it comes from, and they end the process with status 2."""
    try:
        return ServerConfig(**said)
    except ValidationError as error:
        problems = [_problem(said, problem) for problem in error.errors()]
    for problem in problems:
        typer.echo(f"{NAME}: {one_line(problem)}", err=True)
    sys.exit(2)


def _problem(said: dict[str, Any], problem: Any) -> str:
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(reason)
    return f"{'.'.join(map(str, problem['loc']))} ({str(problem['input'])[:80]!r}) from {origin(said, *map(str, problem['loc']))}: {reason}"


def origin(said: dict[str, Any], setting: str, *below: str) -> str:
    """Where a setting comes from, in words. `below`: where in it, if it has names of its own."""
    if setting in said:
        return f"--{setting.replace('_', '-')}"
    environment = not_empty(EnvSettingsSource(ServerConfig)())
    if setting in environment:
        return environment_name(setting)
    named = said.get("config") or environment.get("config")
    if not named:
        return DEFAULT
    file = Path(named).expanduser()
    return f"{file}{line}" if (line := line_of(file, setting, *below)) else DEFAULT
