"""Both commands: their help is whole and fits 80 columns, and shells complete them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import children
from tdreplay_client import cli as client_cli
from tdreplay_server import cli as server_cli

APPS = {"tdreplay": client_cli.app, "tdreplay-server": server_cli.app}
WIDTH = 80
OF_TYPER = {"install_completion", "show_completion", "help"}


def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command and all below it, with their names."""
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *names, name)


ALL = [pytest.param(name, names, command, id=" ".join((name, *names))) for name, app in APPS.items() for names, command in commands(get_command(app))]


@pytest.mark.parametrize(("name", "names", "command"), ALL)
def test_the_help_of_a_command_says_all_of_it_in_80_columns(name, names, command):
    text = CliRunner().invoke(APPS[name], [*names, "--help"], terminal_width=WIDTH, prog_name=name).output
    assert max(map(len, text.splitlines())) <= WIDTH
    assert command.help
    for parameter in command.params:
        if parameter.name in OF_TYPER or not parameter.help:
            assert parameter.name in OF_TYPER, f"{parameter.name} has no help"
            continue
        assert parameter.help.split()[0] in text
        assert all(option in text for option in parameter.opts if option.startswith("-"))
    for below in getattr(command, "commands", {}).values():
        assert below.help


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tdreplay", "sta"], ["status"]),
        (["tdreplay", "table", "d"], ["describe", "drop"]),
        (["tdreplay", "status", "--wat"], ["--watch"]),
        (["tdreplay-server", "config", ""], ["check", "show"]),
        (["tdreplay-server", "config", "check", "--data"], ["--data-dir"]),
    ],
)
def test_a_shell_completes_commands_and_options(words, found):
    variable = f"_{words[0].replace('-', '_').upper()}_COMPLETE"
    environment = {variable: "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = children.completed(words[0], **environment)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", found)


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_names_the_command(name, shell):
    done = children.completed(name, "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert f"_{name.replace('-', '_').upper()}_COMPLETE" in done.stdout
