"""A server's life: settings, addresses, tables, streams, the command line."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from pydantic import ValidationError

from children import command, completed, server_process
from conftest import files_under, freeze, numbers, rows, thaw
from tdreplay.errors import ReplayError, ResourceExhaustedError, ServerUnavailableError, StreamLimitError, TableNotFoundError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig, spawn_server

LOCAL = "127.0.0.1:0"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay-server", *arguments, **environment, COLUMNS="200")


# -- settings ---------------------------------------------------------------------------------------------------------------------------------


def test_settings_come_from_code_then_the_environment_then_the_file(tmp_path, monkeypatch):
    file = tmp_path / "server.toml"
    file.write_text('address = "127.0.0.1:1"\nbuffer_size = 11\nmax_streams = 5\n')
    monkeypatch.setenv("TDREPLAY_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("TDREPLAY_BUFFER_SIZE", "22")
    config = ServerConfig(config=file, address="127.0.0.1:3")
    assert (config.address, config.buffer_size, config.max_streams, config.storing_device) == ("127.0.0.1:3", 22, 5, "cpu")
    monkeypatch.setenv("TDREPLAY_CONFIG", str(file))
    assert ServerConfig().max_streams == 5


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"buffer_size": 0}, "buffer_size"),
        ({"address": "nowhere"}, "HOST:PORT"),
        ({"address": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"storing_device": "tape"}, "cpu or cuda"),
        ({"max_workers": 8, "max_streams": 8}, "max_streams"),
        ({"adress": "127.0.0.1:0"}, "adress"),
        ({"config": "/nowhere.toml"}, "not a file"),
    ],
)
def test_a_bad_setting_is_named(settings, word):
    with pytest.raises(ValidationError, match=word):
        ServerConfig(**settings)


def test_an_unknown_setting_in_the_file_is_named(tmp_path):
    (tmp_path / "server.toml").write_text("buffersize = 3\n")
    with pytest.raises(ValidationError, match="buffersize"):
        ServerConfig(config=tmp_path / "server.toml")


# -- addresses --------------------------------------------------------------------------------------------------------------------------------


def test_port_0_picks_a_free_port():
    with ReplayServer(ServerConfig(address=LOCAL)) as first, ReplayServer(ServerConfig(address=LOCAL)) as second:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", first.address)
        assert first.address != second.address


def test_a_port_that_is_taken_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match=address):
            ReplayServer(ServerConfig(address=address)).start()


def test_two_servers_never_share_a_port():
    with ReplayServer(ServerConfig(address=LOCAL)) as first, pytest.raises(ServerUnavailableError):
        ReplayServer(ServerConfig(address=first.address)).start()


def test_a_stopped_server_can_be_started_again_on_its_port():
    with ReplayServer(ServerConfig(address=LOCAL)) as first:
        address = first.address
    with ReplayServer(ServerConfig(address=address, buffer_size=3)) as second, RemoteReplayBuffer(second.address) as buffer:
        assert buffer.buffer_size == 3


# -- tables -----------------------------------------------------------------------------------------------------------------------------------


def test_the_default_table_is_there_with_the_capacity_of_the_settings():
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=7)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert buffer.buffer_size == 7


def test_without_a_capacity_the_first_client_creates_the_default_table():
    with ReplayServer(ServerConfig(address=LOCAL)) as server, RemoteReplayBuffer(server.address, buffer_size=5) as buffer:
        assert buffer.buffer_size == 5
    with ReplayServer(ServerConfig(address=LOCAL)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert buffer.buffer_size == 1_000_000


def test_tables_are_independent(address, table):
    with RemoteReplayBuffer(address, table=f"{table}-a", buffer_size=4) as a, RemoteReplayBuffer(address, table=f"{table}-b", buffer_size=6) as b:
        a.add_batch(rows(3))
        b.add_batch(rows(5, 100).select("obs"))
        a.reset()
        assert (a.size, b.size) == (0, 5)


def test_there_are_no_more_tables_than_max_tables():
    with ReplayServer(ServerConfig(address=LOCAL, max_tables=1, buffer_size=3)) as server, pytest.raises(ResourceExhaustedError, match="max_tables"):
        RemoteReplayBuffer(server.address, table="second", buffer_size=3)


def test_field_names_from_the_network_never_become_paths(tmp_path):
    config = ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=10)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(2).select("obs").rename_key_("obs", "/etc/escape"))
        buffer.checkpoint("one")
        table, checkpoint = (
            r"tables/default/(LOCK|journal\.sqlite[a-z.-]*|rows-\d+/field_\d+\.memmap)",
            r"checkpoints/default/one/(field_\d+\.rows|\w+\.json.*)",
        )
        assert all(re.fullmatch(rf"data/(LOCK|{table}|{checkpoint})", name) for name in files_under(tmp_path))


def test_without_a_directory_a_server_that_is_killed_leaves_no_file_and_no_space_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with server_process(ServerConfig(address=LOCAL, buffer_size=10)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(4))
        assert nameless_files(server.pid, tmp_path)
        assert list(tmp_path.iterdir()) == []
        os.kill(server.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["close", "reset", "garbage"])
def test_the_space_of_rows_without_a_directory_is_given_back(end, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    buffer = ReplayBuffer("cpu", "cpu", 10)
    buffer.add_batch(rows(4))
    assert nameless_files(os.getpid(), tmp_path)
    if end == "close":
        buffer.close()
    elif end == "reset":
        buffer.reset()
    else:
        del buffer
        gc.collect()
    assert nameless_files(os.getpid(), tmp_path) == []


def nameless_files(pid: int, directory: Path) -> list[str]:
    """The files that a process has open or mapped, of a directory for temporary files."""
    opened = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    mapped = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [path for path in opened + mapped if path.startswith(f"{directory}/")]


def test_a_dropped_table_is_gone_with_its_files(tmp_path):
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data")) as server:
        with RemoteReplayBuffer(server.address, table="gone", buffer_size=4) as buffer:
            buffer.add_batch(rows(4))
            assert RemoteReplayBuffer.tables(server.address) == ["gone"]
            buffer.drop()
            assert RemoteReplayBuffer.tables(server.address) == []
            with pytest.raises(TableNotFoundError):
                buffer.sample_batch(3)
        assert list((tmp_path / "data" / "tables").iterdir()) == []


# -- streams ----------------------------------------------------------------------------------------------------------------------------------


def test_a_stream_beyond_the_limit_waits_as_long_as_it_may_and_other_calls_go_on():
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=100, max_workers=3, max_streams=2)) as server:
        with RemoteReplayBuffer(server.address, timeout=10) as buffer:
            buffer.add_batch(rows(100))
            held = [buffer.create_epoch_iterator(1) for _ in range(2)]
            with RemoteReplayBuffer(server.address, timeout=1) as hasty, pytest.raises(StreamLimitError, match="max_streams"):
                hasty.create_epoch_iterator(1)
            assert numbers(buffer.sample_by_index([3])) == [3]
            assert buffer.size == 100
            for iterator in held:
                assert len(next(iterator)) == 1
                iterator.close()
            eventually(lambda: len(list(buffer.create_epoch_iterator(50))) == 2, StreamLimitError)


def test_a_client_that_vanishes_gives_its_stream_slot_back(tmp_path):
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=1000, max_workers=2, max_streams=1)) as server:
        with RemoteReplayBuffer(server.address, timeout=10) as buffer:
            buffer.add_batch(rows(1000))
            program = f"""
from tdreplay_client import RemoteReplayBuffer
import os, signal
batches = RemoteReplayBuffer({server.address!r}).create_epoch_iterator(1)
next(batches)
os.kill(os.getpid(), signal.SIGKILL)
"""
            assert completed("-c", program).returncode == -signal.SIGKILL
            eventually(lambda: len(list(buffer.create_epoch_iterator(500))) == 2, StreamLimitError)


def eventually(check, error: type[ReplayError], seconds: float = 20.0) -> None:
    """Passes once check() is true; `error` means not yet."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    try:
        while True:
            with suppress(error):
                assert check()
                return
            assert not over.is_set(), f"still {error.__name__} after {seconds} s"
    finally:
        timer.cancel()


# -- the command ------------------------------------------------------------------------------------------------------------------------------


def test_help_names_every_setting():
    done = run("serve", "--help")
    assert done.returncode == 0
    for name in ServerConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_version_is_printed():
    assert re.fullmatch(r"tdreplay-server \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_one_line_when_ready_and_ends_cleanly(signum, tmp_path):
    words = ["tdreplay-server", "serve", "--address", LOCAL, "--data-dir", tmp_path / "data", "--buffer-size", 9, "--storing-device", "cpu"]
    with command(tmp_path / "written", *words) as server:
        with RemoteReplayBuffer(server.ready()) as buffer:
            assert (buffer.buffer_size, buffer.storing_device) == (9, torch.device("cpu"))
        os.kill(server.pid, signum)
        assert server.ended() == 0
        assert re.fullmatch(r"tdreplay-server ready at 127\.0\.0\.1:\d+\n", server.stdout)


def test_a_server_that_was_frozen_ends_at_once_when_it_is_told_to():
    """Of a process that wakes up, any thread may take the signal, and not only the main one."""
    for _ in range(5):
        start = 0.0
        with server_process(ServerConfig(address=LOCAL, buffer_size=5)) as server, RemoteReplayBuffer(server.address) as buffer:
            buffer.add_batch(rows(5))
            freeze(server.pid)
            thaw(server.pid)
            start = time.monotonic()
        assert time.monotonic() - start < 10


def test_serve_reads_the_environment(tmp_path):
    with command(tmp_path / "written", "tdreplay-server", "serve", TDREPLAY_ADDRESS=LOCAL, TDREPLAY_BUFFER_SIZE="4") as server:
        with RemoteReplayBuffer(server.ready()) as buffer:
            assert buffer.buffer_size == 4
        os.kill(server.pid, signal.SIGTERM)
        assert server.ended() == 0


def test_a_full_garbage_collection_of_a_server_does_not_look_at_what_was_loaded():
    program = """
import atexit, gc, time

def seconds():
    start = time.monotonic()
    gc.collect()
    return time.monotonic() - start

atexit.register(lambda: print(seconds(), gc.unfreeze() or seconds()))  # With it, and without.
from tdreplay_server.cli import main
main()
"""
    words = [sys.executable, "-c", program, "serve", "--address", LOCAL, "--until-stdin-closes"]
    done = subprocess.run(words, input="", capture_output=True, text=True, timeout=60, check=True)
    as_served, of_everything = map(float, done.stdout.splitlines()[-1].split())
    assert as_served * 10 < of_everything


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--buffer-size", "0"], 2, ["buffer_size", "0", "greater than or equal to 1"]),
        (["--address", "here"], 2, ["address", "'here'", "HOST:PORT"]),
        (["--address", "unix:/nowhere/at/all.sock"], 1, ["unix:/nowhere/at/all.sock"]),
        (["--config", "/nowhere.toml"], 2, ["config", "/nowhere.toml"]),
        (["--address", LOCAL, "--buffer-size", "4", "--storing-device", "cuda:77"], 1, ["cuda:77"]),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(arguments, code, words):
    done = run("serve", *arguments)
    assert done.returncode == code
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tdreplay-server: ")
    assert [word for word in words if word not in last] == []
    assert "Traceback" not in done.stderr


# -- spawn_server -----------------------------------------------------------------------------------------------------------------------------


def test_a_spawned_server_runs_in_a_process_of_its_own_and_ends_with_the_context(tmp_path):
    with spawn_server(ServerConfig(address=f"unix:{tmp_path / 's.sock'}", buffer_size=5)) as server:
        assert server.pid != os.getpid()
        with RemoteReplayBuffer(server.address) as buffer:
            assert buffer.buffer_size == 5
    assert not psutil.pid_exists(server.pid)


def test_a_spawned_server_that_cannot_start_says_why():
    with pytest.raises(ServerUnavailableError, match="cuda:77"), spawn_server(ServerConfig(address=LOCAL, buffer_size=5, storing_device="cuda:77")):
        pytest.fail("it started")


def test_a_spawned_server_does_not_outlive_its_parent(tmp_path):
    program = f"""
import os, signal, sys
from tdreplay_server import spawn_server
with spawn_server() as server:
    open({str(tmp_path / "pid")!r}, "w").write(str(server.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    settings = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False, env=settings).returncode == -signal.SIGKILL
    pid = int(Path(tmp_path / "pid").read_text())
    if psutil.pid_exists(pid):
        _gone, alive = psutil.wait_procs([psutil.Process(pid)], timeout=20)
        assert not alive
