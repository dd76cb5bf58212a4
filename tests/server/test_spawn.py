"""A server in a child process: it lives as long as its parent is in the context, no longer, and not less long."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from children import command
from tdreplay.errors import ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig, spawn_server

PRELUDE = """
import os, signal, sys, time
import torch
from tensordict import TensorDict
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server
config = ServerConfig(address="127.0.0.1:0", buffer_size=10)
os.setsid()
"""

INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell has its background jobs ignore it.
with spawn_server(config) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
    buffer.add(TensorDict({"x": torch.ones(1)}))
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)  # So that a server that was interrupted as well is gone.
        buffer.add(TensorDict({"x": torch.ones(1)}))
        print(len(buffer), flush=True)
"""

FORKED = """
with spawn_server(config) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
    leaving = os.fork()
    if not leaving:
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(leaving, 0)[1]) == 0
    buffer.add(TensorDict({"x": torch.ones(1)}))
    staying = os.fork()
    if not staying:
        time.sleep(60)
        os._exit(0)
    print(server.pid, staying, flush=True)
    time.sleep(60)
"""


def test_an_interrupt_of_the_process_group_leaves_the_server_to_its_parent(tmp_path):
    with command(tmp_path / "written", "-c", PRELUDE + INTERRUPTED) as parent:
        assert parent.line() == "ready"
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.ended() == 0
        assert parent.stdout == "ready\n2\n"


def test_the_server_ends_with_its_parent_though_a_fork_of_that_lives_on(tmp_path):
    with command(tmp_path / "written", "-c", PRELUDE + FORKED) as parent:
        server, fork = map(int, parent.line().split())
    try:
        deadline = time.monotonic() + 20
        while is_running(server) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(server)
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_modules_in_the_working_directory_are_not_taken_for_others(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise ImportError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    with spawn_server() as server, RemoteReplayBuffer(server.address, buffer_size=10, timeout=10) as buffer:
        assert len(buffer) == 0


def test_what_pythonpath_names_is_imported(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('hello', flush=True)\nprint('without an end', end='', flush=True)\nprint()")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with spawn_server() as server:  # What else is printed is no address.
        RemoteReplayBuffer(server.address, buffer_size=10, timeout=10).close()


def test_a_server_that_ends_at_its_start_is_reported_at_once(tmp_path):
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path)):
        with pytest.raises(ServerUnavailableError, match=r"(?s)ended with exit status 1 before it was ready.*in use by process") as raised:
            with spawn_server(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path), start_timeout=3600):
                pass
    assert "not ready within" not in str(raised.value)


def test_a_server_that_is_killed_at_its_start_is_reported_at_once(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ServerUnavailableError, match="was ended by SIGKILL before it was ready"):
        with spawn_server(start_timeout=3600):
            pass


def test_a_server_that_is_not_ready_in_time_is_ended(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(3600)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(ServerUnavailableError, match=r"was not ready within 0.3 s"):
        with spawn_server(start_timeout=0.3):
            pass
