"""The commands ``tdreplay status`` and ``tdreplay top``, beside real servers, in pipes and on terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import children
from children import completed, free_port, server_process
from conftest import rows
from pty_screen import on_terminal
from tdreplay.rate_limiters import MinSize
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

CHANGING = {"insert_rate", "sample_rate"}


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a server whose two tables have rows; a learner of the table 'waits' waits for more."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        with (
            RemoteReplayBuffer(server.address, table="drawn", buffer_size=200, timeout=10) as drawn,
            RemoteReplayBuffer(server.address, table="waits", buffer_size=100, rate_limiter=MinSize(50), timeout=100) as waits,
        ):
            drawn.add_batch(rows(150))
            waits.add_batch(rows(5))
            with drawn.stream(10) as stream, waits.stream(10):
                next(stream)
                deadline = time.monotonic() + 10
                while not waits.describe().samples.waiting:
                    assert time.monotonic() < deadline
                yield server.address


def run(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay", "status", *arguments, "--address", address)


# -- status -----------------------------------------------------------------------------------------------------------------------------------


def test_a_status_in_json_says_what_describe_and_the_server_say(served):
    done = run(served, "--json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    found, server = json.loads(done.stdout), RemoteReplayBuffer.server_status(served)
    assert found["address"] == served
    for said in found["tables"]:
        with RemoteReplayBuffer(served, table=said["table"], timeout=10) as buffer:
            expected = json.loads(json.dumps(buffer.describe().to_json()))
        expected["samples"]["seconds"] = said["samples"]["seconds"]  # It waits on.
        assert {name: value for name, value in said.items() if name not in CHANGING} == {
            name: value for name, value in expected.items() if name not in CHANGING
        }
    assert [table["table"] for table in found["tables"]] == ["drawn", "waits"]
    assert found["server"]["version"] == server.version
    assert {client["peer"] for client in found["server"]["clients"] if client["open_calls"].get("Sample")} == {
        client.peer for client in server.clients if client.open_calls.get("Sample")
    }
    assert {limit["name"]: limit["limit"] for limit in found["server"]["limits"]} == {limit.name: limit.limit for limit in server.limits}


def test_a_status_in_a_pipe_has_no_colours_and_cuts_nothing(served):
    name = "a-table-with-a-name-as-long-as-a-name-of-a-table-may-be-" + "x" * 8
    with RemoteReplayBuffer(served, table=name, buffer_size=10, timeout=10) as buffer:
        done = run(served)
        buffer.drop()
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith(f"{name} 0% 0 10 ") for line in lines)
    assert any(line.startswith("drawn 75% 150 200 ") for line in lines)
    assert "waits: 1 samples waiting: sampling needs 50 rows, 5 are there" in lines
    assert any(line.startswith("127.0.0.1:") and " Sample" in line for line in lines)


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_watch_looks_until_it_is_interrupted(served, tmp_path, json_too):
    with children.command(tmp_path / "written", "tdreplay", "status", "--watch", "0.1", *json_too, "--address", served) as running:
        deadline = time.monotonic() + 30
        seen = '"version"' if json_too else "durability none"
        while running.stdout.count(seen) < 3:
            assert time.monotonic() < deadline, running.stderr
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGINT)
        assert running.ended() == 0
        assert running.stderr == ""
        assert all(json.loads(line)["address"] == served for line in running.stdout.splitlines() if json_too)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["5"], "give --watch"), (["--watch", "0"], "SECONDS (0.0)"), (["--watch", "nan"], "SECONDS (nan)"), (["--timeout", "0"], "timeout (0.0)")],
)
def test_an_argument_that_cannot_be_is_one_line(served, arguments, words):
    done = run(served, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize("command", [["status"], ["status", "--json"]])
def test_a_server_that_is_not_there_is_one_line(command):
    done = completed("tdreplay", *command, "--address", "127.0.0.1:1", "--timeout", "0.2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1" in done.stderr


def made_token(role: str, file: str) -> str:
    return completed("tdreplay-server", "token", "create", "--role", role, "--name", f"{role}-1", "--tokens-file", file).stdout.strip()


def test_only_a_reader_sees_a_server_that_asks_for_names_and_clients_are_shown_with_theirs(tmp_path):
    file = str(tmp_path / "tokens.json")
    tokens = {role: made_token(role, file) for role in ("reader", "learner")}
    with ReplayServer(ServerConfig(address="127.0.0.1:0", tokens_file=tmp_path / "tokens.json")) as server:
        seen = completed("tdreplay", "status", "--address", server.address, TDREPLAY_TOKEN=tokens["reader"])
        refused = completed("tdreplay", "status", "--address", server.address, TDREPLAY_TOKEN=tokens["learner"])
        unknown = completed("tdreplay", "status", "--address", server.address)
    assert (seen.returncode, seen.stderr) == (0, "")
    assert "asks for names" in seen.stdout
    assert any(line.split()[1:4] == ["reader-1", "reader", "ServerStatus"] for line in seen.stdout.splitlines() if line.startswith("127.0.0.1:"))
    assert [(done.returncode, done.stdout, done.stderr.count("\n")) for done in (refused, unknown)] == [(1, "", 1)] * 2
    assert "learner-1" in refused.stderr
    assert tokens["learner"] not in refused.stderr + seen.stdout


# -- top --------------------------------------------------------------------------------------------------------------------------------------


def test_top_refuses_where_there_is_no_terminal(served):
    done = completed("tdreplay", "top", "--address", served)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "use tdreplay status --watch" in done.stderr


def test_top_draws_takes_keys_follows_the_size_and_leaves_the_terminal_as_it_was(served, tmp_path):
    with on_terminal(tmp_path / "written", "top", "--address", served, "--interval", "0.1") as screen:
        lines = screen.having("sort: name")
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("drawn ") and "75%" in line for line in lines)
        assert any(line.startswith("waits ") and " S " in line for line in lines)
        assert any("sampling needs 50 rows" in line for line in lines)
        screen.type("sr")
        screen.having("sort: fill   r reversed")
        screen.size(50, 10)
        screen.awaited(lambda lines: len(lines) == 10 and max(map(len, lines)) <= 50)
        screen.type("q")
        assert screen.ended() == 0
        assert screen.is_clean()


@pytest.mark.parametrize(("ends", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 0)])
def test_a_signal_ends_top_and_leaves_the_terminal_as_it_was(served, tmp_path, ends, status):
    with on_terminal(tmp_path / "written", "top", "--address", served) as screen:
        screen.having("q quit")
        os.kill(screen.running.pid, ends)
        assert screen.ended() == status
        assert screen.is_clean()


def test_top_outlives_its_server(tmp_path: Path):
    config = ServerConfig(address=f"127.0.0.1:{free_port()}", data_dir=tmp_path / "data", buffer_size=100)
    with server_process(config) as server, on_terminal(tmp_path / "written", "top", "--address", server.address, "--interval", "0.1") as screen:
        screen.having("default")
        server.child.kill()
        assert any(server.address in line for line in screen.having("away since"))
        server.child.wait()
        with server_process(config):
            screen.awaited(lambda lines: not any("away since" in line for line in lines))
            screen.type("q")
            assert screen.ended() == 0
            assert screen.is_clean()
