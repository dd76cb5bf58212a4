"""The documents hold: their Python runs against a real server, their commands are there, their tables say what the code says."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import children
from tdreplay import errors, limits
from tdreplay.fields import DTYPES
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import cli as client_cli
from tdreplay_server import ServerConfig
from tdreplay_server import cli as server_cli

ROOT = Path(__file__).parents[1]
ADDRESS = ServerConfig.model_fields["address"].default
COMMANDS = {"make", "tdreplay", "tdreplay-server", "python", "pip", "docker", "cd", "git", "opentelemetry-instrument"}
APPS = {"tdreplay": client_cli.app, "tdreplay-server": server_cli.app}
SHELL = ("console", "bash")
PROTOCOL = ROOT / "docs" / "protocol.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; `line` is the number of its first line."""

    language: str
    line: int
    text: str


def blocks(path: Path, *languages: str) -> list[Block]:
    text = path.read_text()
    found = re.finditer(r"^( *)```(\w+)[^\n]*\n(.*?)^\1``` *$", text, re.M | re.S)
    made = [Block(match[2], text.count("\n", 0, match.start(3)) + 1, textwrap.dedent(match[3])) for match in found]
    return [block for block in made if block.language in languages]


def documents_with(*languages: str) -> list[object]:
    """The documents that have such blocks, as parameters of a test."""
    paths = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths if blocks(path, *languages)]


# -- Python -----------------------------------------------------------------------------------------------------------------------------------


def blocks_alone(*languages: str) -> list[object]:
    """Every block of every document, as parameters of a test."""
    paths = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    return [pytest.param(block, id=f"{path.relative_to(ROOT)}:{block.line}") for path in paths for block in blocks(path, *languages)]


@pytest.mark.parametrize("block", blocks_alone("python"))
def test_a_python_block_runs_when_it_is_pasted_alone(block, tmp_path, address):
    """In a process and a directory of its own, beside a server at the usual address."""
    program = block.text.replace(ADDRESS, address).replace("/tmp/replay", str(tmp_path / "replay"))
    ended = children.completed("-c", program, directory=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("block", blocks_alone("toml"))
def test_a_toml_block_is_a_file_of_settings(block, tmp_path):
    (tmp_path / "server.toml").write_text(block.text)
    config = ServerConfig(config=tmp_path / "server.toml")
    assert config.tables is None or all(table.buffer_size for table in config.tables.values())


# -- commands ---------------------------------------------------------------------------------------------------------------------------------


def commands(script: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words. Where lines have a prompt, the others are output."""
    lines = script.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        for is_operator, words in itertools.groupby(lexer, lambda word: set(word) <= set(";|&")):
            if not is_operator:
                yield list(itertools.dropwhile(re.compile(r"\w+=").match, words))  # Without VARIABLE=value.


def commands_of(path: Path) -> list[list[str]]:
    return [command for block in blocks(path, *SHELL) for command in commands(block.text)]


def test_a_shell_block_is_taken_apart_into_its_commands():
    script = "# a comment\nmake demo    # trains\ncd x && A=1 tdreplay-server serve \\\n  --address 127.0.0.1:0 &\npip install '.[server]'\n"
    expected = [["make", "demo"], ["cd", "x"], ["tdreplay-server", "serve", "--address", "127.0.0.1:0"], ["pip", "install", ".[server]"]]
    assert list(commands(script)) == expected
    assert list(commands("$ make test\n12 passed\n$ git status\n")) == [["make", "test"], ["git", "status"]]


@pytest.mark.parametrize("path", documents_with(*SHELL))
def test_the_commands_of_a_document_are_known(path):
    assert {command[0] for command in commands_of(path)} <= COMMANDS


@pytest.mark.parametrize("path", documents_with(*SHELL))
def test_what_a_document_makes_is_a_target_of_the_makefile(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wanted = {word for command in commands_of(path) if command[0] == "make" for word in command[1:] if "=" not in word}
    assert wanted <= targets


@pytest.mark.parametrize("path", documents_with(*SHELL))
def test_our_commands_know_the_options_that_a_document_gives_them(path):
    """With --help added, every command ends by itself, after its options were parsed."""
    for name, *arguments in commands_of(path):
        if name in APPS:
            result = CliRunner().invoke(APPS[name], [*arguments, "--help"])
            assert result.exit_code == 0, f"{arguments}: {result.output}"


@pytest.mark.parametrize("path", documents_with(*SHELL))
def test_the_commands_of_a_document_that_end_by_themselves_do(path):
    for name, *arguments in commands_of(path):
        if name in APPS and {"--help", "--version"} & {*arguments}:
            words = [str(Path(sys.executable).parent / name), *arguments]
            ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert ended.stdout


def runnable(path: Path) -> list[list[str]]:
    """The commands of our own that a document shows."""
    return [command for command in commands_of(path) if command[0] in APPS and not {"--help", "--version"} & {*command}]


SERVE = ["tdreplay-server", "serve", "--address", ADDRESS, "--data-dir", "./replay"]


@pytest.mark.parametrize("name", ["README.md", "docs/durability.md"])
def test_the_commands_of_a_document_do_what_it_says_one_after_the_other(name, tmp_path):
    """In an empty directory: beside a server what asks one, and without it what needs its directory for itself."""
    commands = runnable(ROOT / name)
    serving = [command for command in commands if "serve" in command]
    with serving_in(tmp_path, serving[0] if serving else [*SERVE, "--buffer-size", "1000"]):
        pass  # It makes the table.
    for of, group in itertools.groupby([command for command in commands if "serve" not in command], lambda command: command[0]):
        with serving_in(tmp_path, SERVE) if of == "tdreplay" else nullcontext("") as address:
            for words in group:
                ran = children.completed(*(address if word == ADDRESS else word for word in words), directory=tmp_path)
                assert ran.returncode == 0, f"{words}: {ran.stderr}"


@contextmanager
def serving_in(directory: Path, words: list[str]) -> Iterator[str]:
    """Runs a server on a free port, and gives its address."""
    with tempfile.TemporaryDirectory() as scratch:
        with children.command(
            Path(scratch) / "written", *("127.0.0.1:0" if word == ADDRESS else word for word in words), directory=directory
        ) as server:
            yield server.ready()
            os.kill(server.pid, signal.SIGTERM)
            assert server.ended() == 0


# -- the protocol's tables --------------------------------------------------------------------------------------------------------------------


def table(header: str) -> list[list[str]]:
    """The cells of the table of docs/protocol.md whose first line begins with `header`, without the backquotes."""
    (lines,) = re.findall(rf"^\| {re.escape(header)}[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", PROTOCOL.read_text(), re.M)
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines.splitlines()]


def test_the_protocol_names_every_call_and_its_arity():
    arity = {True: "stream", False: "one"}
    methods = pb.DESCRIPTOR.services_by_name["ReplayBufferService"].methods
    assert [cells[:3] for cells in table("call")] == [[m.name, arity[m.client_streaming], arity[m.server_streaming]] for m in methods]


def test_the_protocol_names_every_dtype_and_its_size():
    documented = {
        name: int(size) for names, sizes, _ in table("dtype") for name, size in zip(names.split(), itertools.cycle(sizes.split(", ")), strict=False)
    }
    assert documented == {name: dtype.itemsize for name, dtype in DTYPES.items()}


def test_the_protocol_names_every_error_and_its_status():
    classes = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    documented = {name: status for name, status, _ in table("`tdreplay-error`")}
    assert documented == {cls.__name__: cls.code.name for cls in classes if cls is not errors.ReplayError}


def test_the_protocol_names_the_limits():
    rows = {what: limit for what, limit, _ in table("what | limit | beyond it")}
    assert rows["a message"] == f"{limits.MAX_MESSAGE_BYTES >> 20} MiB"
    assert rows["a block that the server sends"] == f"about {limits.BLOCK_BYTES >> 20} MiB, or one row"
    assert rows["a block's header"] == f"{limits.MAX_HEADER_BYTES >> 10} KiB"
    assert rows["the dimensions of a field in a block"].startswith(f"{limits.MAX_RANK}, ")
    assert rows["batch_size, the slots in one SampleByIndex"].endswith(f"{limits.MAX_BATCH_SIZE:,}")
    assert rows["the row_ids in one SampleByIndex with epoch, of however many batches"] == f"1 to {limits.MAX_EPOCH_IDS}"
    assert rows["open standing calls"].endswith(f", {ServerConfig().max_standing}")
    assert f"{limits.MOST_SHARED_BYTES >> 20} MiB" in rows["the slots of one stream together, and of all streams"]
    assert f"{limits.LEAST_SHARED_BYTES >> 10} KiB" in rows["the slots of one stream together, and of all streams"]
    window = limits.SEQUENCE_WINDOW
    assert rows["the numbers of a writer that the server knows"] == f"{window}: its highest and the {window - 1} below it"
    assert rows["open AddBatch, Sample, SampleAll, Epoch and Checkpoint calls"].endswith(
        f"max_streams, {ServerConfig.model_fields['max_streams'].default}"
    )


# -- the README's table of settings -----------------------------------------------------------------------------------------------------------


def test_the_readme_names_every_setting_with_its_option_and_its_variable():
    rows = re.findall(r"^\| `--([\w-]+)` \| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert sorted(rows) == sorted((name.replace("_", "-"), f"TDREPLAY_{name.upper()}") for name in ServerConfig.model_fields)


def test_every_capacity_of_a_table_default_in_the_readme_is_the_same():
    text = (ROOT / "README.md").read_text().split("### Streams")
    assert set(re.findall(r"serve .*--buffer-size (\w+)|buffer_size = (\d+)|buffer_size=([\d_]{4,})", "".join(text))) <= {
        ("100000", "", ""),
        ("", "100000", ""),
        ("", "", "100_000"),
    }
