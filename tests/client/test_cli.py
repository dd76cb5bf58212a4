"""The command ``tdreplay``."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from children import completed
from conftest import rows
from tdreplay.errors import InvalidArgumentError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay", *arguments, **environment)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Iterator[str]:
    """The address of a server with a data directory, whose table 'default' has 100 rows."""
    config = ServerConfig(address="127.0.0.1:0", data_dir=tmp_path_factory.mktemp("cli") / "data", buffer_size=1000)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
        buffer.add_batch(rows(100))
        yield server.address


def test_a_checkpoint_is_one_line_with_its_path(filled):
    done = run("checkpoint", "first", "--address", filled)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("checkpoint ")
    path, _, rest = done.stdout.removeprefix("checkpoint ").partition(": ")
    assert path.endswith("first")
    assert rest.startswith("100 rows, ")
    assert rest.endswith(" bytes\n")


def test_the_address_comes_from_the_environment(filled):
    assert run("checkpoint", "second", TDREPLAY_ADDRESS=filled).returncode == 0


@pytest.mark.parametrize(("arguments", "words"), [(["no/name"], "no/name"), (["name", "--table", "none"], "'none'")])
def test_a_refusal_is_one_line_on_standard_error(filled, arguments, words):
    done = run("checkpoint", *arguments, "--address", filled)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tdreplay: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_server_that_is_not_there_is_one_line_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = run("checkpoint", "name", "--address", address, "--timeout", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert address in done.stderr


def test_the_version_is_told():
    assert run("--version").stdout.startswith("tdreplay ")


def test_a_checkpoint_says_how_far_it_is(filled):
    with RemoteReplayBuffer(filled, timeout=10) as buffer:
        seen: list[tuple[int, int]] = []
        made = buffer.checkpoint("third", progress=lambda done, total: seen.append((done, total)))
        assert (made.rows, made.write_count) == (100, 100)
        assert seen[-1] == (made.bytes, made.bytes)
        with pytest.raises(InvalidArgumentError, match="no/name"):
            buffer.checkpoint("no/name")


def test_a_buffer_says_what_its_rows_survive(filled, address, table):
    with RemoteReplayBuffer(filled, timeout=10) as kept, RemoteReplayBuffer(address, table=table, buffer_size=5, timeout=10) as lost:
        assert kept.state().durability == "process"
        assert lost.state().durability == "none"


def test_a_server_that_serves_is_healthy(filled):
    done = run("health", "--address", filled)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{filled} SERVING\n", "")
    done = run("health", TDREPLAY_ADDRESS=filled)
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [("--address", "127.0.0.1:1"), ("--service", "nope")])
def test_what_does_not_serve_is_not_healthy(filled, arguments):
    done = run("health", *arguments, TDREPLAY_ADDRESS=filled)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_a_health_check_imports_nothing_heavier_than_grpc(filled):
    program = "import sys; from tdreplay_client.cli import main\ntry: main()\nfinally: print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program, "health", "--address", filled], capture_output=True, text=True, timeout=60, check=True)
    assert {*done.stdout.splitlines()[-1].split()}.isdisjoint({"torch", "numpy", "tensordict", "torchrl"})


@pytest.mark.parametrize("command", [("health",), ("checkpoint", "one")])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--address", "here"), "address ('here') must be HOST:PORT"),
        (("--address", "127.0.0.1:70000"), "port from 1 to 65535"),
        (("--address", "127.0.0.1:0"), "port from 1 to 65535"),
        (("--address", "unix:"), "must be HOST:PORT"),
        (("--timeout", "nan"), "timeout (nan)"),
        (("--timeout", "-1"), "timeout (-1.0)"),
        (("--timeout", "0"), "timeout (0.0)"),
    ],
)
def test_an_argument_that_cannot_be_is_one_line_that_says_the_rule(command, arguments, words):
    done = run(*command, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("tdreplay: ")
    assert words in done.stderr


def test_an_address_that_is_empty_is_not_given(filled):
    assert run("health", "--address", "", TDREPLAY_ADDRESS=filled).stdout == f"{filled} SERVING\n"
    assert "127.0.0.1:50051" in run("health", "--timeout", "0.1", TDREPLAY_ADDRESS="").stderr


def test_a_misspelt_variable_is_named_with_the_right_one(filled):
    done = run("health", TDREPLAY_ADRESS=filled)
    assert (done.returncode, done.stderr) == (1, "tdreplay: TDREPLAY_ADRESS in the environment is not a setting: TDREPLAY_ADDRESS is\n")


def test_help_shows_the_variable_and_the_default():
    text = " ".join(run("health", "--help", TERMINAL_WIDTH="200").stdout.split())
    assert "[env: TDREPLAY_ADDRESS] [default: 127.0.0.1:50051]" in text
