"""A process that has few open files left says so, and harms nothing."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from children import command, completed
from conftest import numbers, rows
from tdreplay.errors import ResourceExhaustedError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig, spawn_server

LOCAL = "127.0.0.1:0"
LIMIT = 256


def config(data: Path | None, **settings: object) -> ServerConfig:
    return ServerConfig(address=LOCAL, data_dir=data, **settings)


@contextmanager
def limited(limit: int) -> Iterator[None]:
    """This process, and those that it starts, may have so many files open; it may raise that again."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def all_taken() -> Iterator[None]:
    """This process has as many files open as it may."""
    with limited(len(os.listdir("/proc/self/fd")) + 20), ExitStack() as taken:
        try:
            while True:
                taken.callback(os.close, os.open("/", os.O_RDONLY))
        except OSError:
            yield


def test_the_command_raises_the_limit_to_what_the_system_allows():
    limit = len(os.listdir("/proc/self/fd")) + LIMIT
    with limited(limit), spawn_server(config(None)) as server:
        found = Path(f"/proc/{server.pid}/limits").read_text()
    (line,) = (line for line in found.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard != str(limit)


def test_tables_beyond_the_limit_are_refused_and_a_restart_has_those_that_were_made(tmp_path):
    data = tmp_path / "data"
    with limited(len(os.listdir("/proc/self/fd")) + 160), ReplayServer(config(data)) as server, ExitStack() as opened:
        connection = opened.enter_context(RemoteReplayBuffer(server.address, table="t0", buffer_size=10))
        connection.add_batch(rows(3))
        made = itertools.takewhile(lambda _: made_one_more(server.address), range(60))
        assert len(list(made)) < 59
        with pytest.raises(ResourceExhaustedError, match="ulimit -n"):
            RemoteReplayBuffer(server.address, table="wide", buffer_size=10)
        names = RemoteReplayBuffer.tables(server.address)
        assert len(names) > 5
        connection.add_batch(rows(3, 3))
        assert numbers(connection.sample_all()) == list(range(6))
    assert sorted(path.name for path in (data / "tables").iterdir()) == names
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address, table="t0") as buffer:
        assert numbers(buffer.sample_all()) == list(range(6))
        assert RemoteReplayBuffer.tables(server.address) == names


def made_one_more(address: str) -> bool:
    """Whether another table could be made."""
    with suppress(ResourceExhaustedError):
        RemoteReplayBuffer(address, table=f"t{uuid.uuid4()}", buffer_size=10).close()
        return True
    return False


def test_many_fields_are_refused_by_the_limit_and_not_by_their_size(tmp_path):
    row = TensorDict({f"f{number}": torch.zeros(1) for number in range(300)}, [1])
    for directory in (tmp_path / "table", None):
        with ReplayBuffer("cpu", "cpu", 10, directory=directory) as buffer:
            with limited(len(os.listdir("/proc/self/fd")) + 200), pytest.raises(ResourceExhaustedError, match="ulimit -n") as raised:
                buffer.add_batch(row)
            assert "buffer_size" not in str(raised.value)
            assert buffer.state().schema is None
            buffer.add_batch(rows(3))
            assert numbers(buffer.sample_all()) == [0, 1, 2]


def test_without_a_descriptor_the_journal_is_compacted_later_and_a_checkpoint_and_a_reset_are_refused_or_done(tmp_path):
    with ReplayBuffer("cpu", "cpu", 100, directory=tmp_path / "table") as buffer:
        buffer.add_batch(rows(1))
        with all_taken():
            for number in range(1, 1500):  # The journal is compacted after 1,000.
                buffer.add_batch(rows(1, number))
            with pytest.raises(ResourceExhaustedError, match="ulimit -n"):
                buffer.checkpoint("one")
            assert buffer.state().write_count == 1500
            buffer.reset()
            with pytest.raises(ResourceExhaustedError, match="ulimit -n"):
                buffer.add_batch(rows(1))
            with pytest.raises(ResourceExhaustedError, match="ulimit -n"):
                ReplayBuffer("cpu", "cpu", 100, directory=tmp_path / "other")
            assert not (tmp_path / "other").exists()
        buffer.add_batch(rows(3))
        assert numbers(buffer.sample_all()) == [0, 1, 2]
        buffer.checkpoint("one")
    with ReplayBuffer("cpu", "cpu", 100, directory=tmp_path / "table") as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2]


def test_a_directory_with_more_tables_than_descriptors_is_one_clear_line_and_nothing_changes(tmp_path):
    data = tmp_path / "data"
    with ReplayServer(config(data)) as server:
        for number in range(30):
            RemoteReplayBuffer(server.address, table=f"t{number}", buffer_size=10).close()
    program = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sys.argv = ["tdreplay-server", "serve", "--address", "{LOCAL}", "--data-dir", {str(data)!r}]
from tdreplay_server.cli import main
main()
"""
    ended = completed("-c", program)
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("tdreplay-server: "))
    assert [word for word in ("30 tables", "ulimit -n", "100") if word not in line] == []
    assert "Traceback" not in ended.stderr
    with ReplayServer(config(data)) as server:
        assert len(RemoteReplayBuffer.tables(server.address)) == 30


LIMITED_SERVER = f"""
import resource
import signal
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
from tdreplay_server.cli import main
main()
"""

HOLDER = f"""
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
host, _, port = sys.argv[1].rpartition(":")
held = [socket.create_connection((host, int(port))) for _ in range({3 * LIMIT})]
print("held", flush=True)
sys.stdin.read()
"""


def test_idle_connections_are_bounded_so_that_tables_go_on(tmp_path):
    """More connections than the process may have files open: those beyond half of the limit are closed, and the ones that are served work."""
    serve = ["-c", LIMITED_SERVER, "serve", "--address", LOCAL, "--data-dir", tmp_path / "data", "--buffer-size", 100]
    with command(tmp_path / "written", *serve) as server:
        address = server.ready()
        with RemoteReplayBuffer(address) as buffer:
            buffer.add_batch(rows(1))
            hold = [sys.executable, "-c", HOLDER, address]
            with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
                assert holder.stdout.readline() == "held\n"
                for number in range(1, 1200):
                    buffer.add_batch(rows(1, number))
                buffer.checkpoint("one")
                assert buffer.state().write_count == 1200
                holder.communicate()
        with RemoteReplayBuffer(address, table="new", buffer_size=5) as new:
            new.add_batch(rows(5))
            assert new.size == 5
        os.kill(server.pid, signal.SIGTERM)
        assert server.ended() == 0
