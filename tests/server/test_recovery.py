"""A data directory goes on where the last server ended, belongs to one server, and is refused whole where it does not fit."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from children import completed, server_process
from conftest import files_under, numbers, rows
from tdreplay.errors import (
    CorruptDataError,
    DirectoryInUseError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    SchemaError,
    ServerUnavailableError,
)
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.durability.journal_check import write_checksums
from tdreplay_server.durability.journal_format import FORMAT
from tdreplay_server.durability.journal_state import read_journal

LOCAL = "127.0.0.1:0"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def config(data: Path, **settings: object) -> ServerConfig:
    return ServerConfig(address=LOCAL, data_dir=data, **settings)


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay-server", "serve", "--address", LOCAL, *arguments)


# -- going on ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 27])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_new_server_goes_on_where_the_last_one_ended(data, count, end):
    with server_process(config(data, buffer_size=10)) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
        buffer.add_batch(rows(count))
        before, stored = buffer.state(), buffer.sample_all()
        os.kill(server.pid, end)
    with server_process(config(data)) as server, RemoteReplayBuffer(server.address, timeout=10) as buffer:
        assert buffer.state() == before
        assert (buffer.sample_all() == stored).all()
        buffer.add_batch(rows(2, count))
        assert buffer.sample_all()["row_id"].max() == count + 1
        with pytest.raises(SchemaError, match="'obs'"):
            buffer.add_batch(rows(2).set("obs", torch.zeros(2, 9)))


def test_every_table_is_there_again_and_a_dropped_one_is_not(data):
    with ReplayServer(config(data)) as server:
        for name in ("a", "b", "c"):
            with RemoteReplayBuffer(server.address, table=name, buffer_size=5) as buffer:
                buffer.add_batch(rows(4, ord(name)))
        buffer = RemoteReplayBuffer(server.address, table="b")
        buffer.drop()
        buffer.close()
    with ReplayServer(config(data)) as server:
        assert RemoteReplayBuffer.tables(server.address) == ["a", "c"]
        with RemoteReplayBuffer(server.address, table="c") as buffer:
            assert numbers(buffer.sample_all()) == list(range(99, 103))


def test_row_ids_go_on_after_a_reset_and_a_restart(data):
    with ReplayBuffer("cpu", "cpu", 10, directory=data) as buffer:
        buffer.add_batch(rows(7))
        buffer.reset(4)
        assert sorted(path.name for path in data.glob("rows-*")) == []
    with ReplayBuffer("cpu", "cpu", 4, directory=data) as buffer:
        assert (buffer.size, buffer.state().schema) == (0, None)
        buffer.add_batch(rows(2).select("action"))
        assert buffer.sample_all()["row_id"].tolist() == [8, 9]
    with ReplayBuffer("cpu", "cpu", 4, directory=data) as buffer:
        assert buffer.sample_all()["row_id"].tolist() == [8, 9]


def test_what_a_process_left_half_made_is_removed(data):
    with ReplayServer(config(data, buffer_size=5)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(3))
        buffer.checkpoint("one")
    leftovers = [data / "tables/.new-x-1", data / "tables/.old-y-2", data / "tables/default/rows-000009", data / "checkpoints/default/.new-one-3"]
    for path in leftovers:
        path.mkdir()
        (path / "file").write_bytes(b"left")
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2]
    assert not any(path.exists() for path in leftovers)


def test_the_space_for_all_rows_is_taken_with_the_first(data):
    with ReplayBuffer("cpu", "cpu", 100_000, directory=data) as buffer:
        buffer.add_batch(rows(1))
        for path in data.glob("rows-*/*.memmap"):
            assert path.stat().st_blocks * 512 >= path.stat().st_size > 0


def test_rows_for_which_there_is_no_space_are_refused_and_leave_nothing(data):
    with ReplayBuffer("cpu", "cpu", 1 << 50, directory=data) as buffer:
        with pytest.raises(ResourceExhaustedError, match="smaller buffer_size"):
            buffer.add_batch(rows(1))
        assert not list(data.glob("rows-*"))
        assert buffer.size == 0


# -- one owner --------------------------------------------------------------------------------------------------------------------------------


def test_a_second_server_on_a_directory_ends_at_once_and_names_the_first(data):
    with server_process(config(data, buffer_size=5)) as server:
        ended = serve("--data-dir", str(data))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"in use by process {server.pid}" in ended.stderr
    with ReplayServer(config(data)):
        pass


def test_a_buffer_in_process_has_its_directory_for_itself(data):
    with ReplayBuffer("cpu", "cpu", 5, directory=data):
        with pytest.raises(DirectoryInUseError, match=str(os.getpid())):
            ReplayBuffer("cpu", "cpu", 5, directory=data)
    ReplayBuffer("cpu", "cpu", 5, directory=data).close()


def test_a_second_server_on_a_unix_socket_is_refused_and_the_first_goes_on(tmp_path):
    settings = ServerConfig(address=f"unix:{tmp_path}/socket", buffer_size=5)
    with ReplayServer(settings) as server:
        with pytest.raises(ServerUnavailableError, match="already in use"):
            ReplayServer(settings).start()
        with RemoteReplayBuffer(server.address) as buffer:
            assert buffer.buffer_size == 5


# -- refused ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(data: Path) -> Path:
    with ReplayServer(config(data, buffer_size=10)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(4))
    return data


def assert_refused(data: Path, error: type[Exception], words: str, **settings: object) -> None:
    """The server does not start, says why, and no byte of the directory changed."""
    before = files_under(data)
    with pytest.raises(error, match=words):
        ReplayServer(config(data, **settings)).start()
    assert files_under(data) == before


def test_another_capacity_is_refused_with_what_differs_and_what_to_do(filled):
    assert_refused(filled, FailedPreconditionError, "buffer_size 10, not 12.*tdreplay-server resize", buffer_size=12)
    with pytest.raises(FailedPreconditionError, match="buffer_size 10, not 12"):
        ReplayBuffer("cpu", "cpu", 12, directory=filled / "tables" / "default")


def test_a_newer_format_is_refused(filled):
    journal = filled / "tables/default/journal.sqlite"
    with sqlite3.connect(journal) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    connection.close()
    write_checksums(journal)
    assert_refused(filled, FailedPreconditionError, f"format {FORMAT + 1}, and this version knows {FORMAT}")


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite.checksums"])
def test_a_journal_that_is_missing_is_refused(filled, name):
    (filled / "tables/default" / name).unlink()
    assert_refused(filled, CorruptDataError, f"{name}.* missing")


def test_rows_that_are_missing_or_cut_are_refused(filled):
    (file, *_) = sorted(filled.glob("tables/default/rows-*/*.memmap"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CorruptDataError, match=f"{file.name} has {len(whole) - 1} bytes, and {len(whole)} were written"):
        ReplayServer(config(filled)).start()
    file.unlink()
    with pytest.raises(CorruptDataError, match=f"{file.name} has 0 bytes"):
        ReplayServer(config(filled)).start()
    file.write_bytes(whole)
    with ReplayServer(config(filled)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2, 3]


def test_a_refused_directory_belongs_to_nobody(filled):
    with pytest.raises(FailedPreconditionError):
        ReplayServer(config(filled, buffer_size=11)).start()
    with ReplayServer(config(filled, buffer_size=10)):
        pass


# -- levels -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["process", "interval:0.5", "power"])
def test_what_rows_survive_is_told(data, text):
    with ReplayServer(config(data, buffer_size=5, durability=text)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert buffer.durability == buffer.state().durability == text.partition(":")[0]


def test_rows_without_a_directory_survive_nothing_and_the_log_says_so(caplog):
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=5)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert buffer.durability == "none"
        with pytest.raises(FailedPreconditionError, match="data_dir"):
            buffer.checkpoint("one")
    assert "rows end with this process" in caplog.text


def test_files_stay_open_while_a_process_that_closed_nothing_exits(data):
    """Until it is gone its flusher may be at work, and one that finds no files would note as flushed what is not."""
    program = f"""
import atexit
from pathlib import Path
atexit.register(lambda: print(*(file.resolve() for file in Path("/proc/self/fd").iterdir())))  # First, so that it runs last.
import torch
from tensordict import TensorDict
from tdreplay_server import ReplayBuffer
buffer = ReplayBuffer("cpu", "cpu", 5, directory=Path({str(data)!r}), durability="interval:60")
buffer.add_batch(TensorDict({{"x": torch.arange(3)}}, [3]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "field_000.memmap" in done.stdout


@pytest.mark.parametrize("text", ["none", "interval", "interval:0", "interval:x", "interval:9999", "Power", "interval:"])
def test_an_unknown_level_is_refused(data, text):
    with pytest.raises(ValidationError, match=r"process, interval:SECONDS"):
        config(data, durability=text)
    with pytest.raises(InvalidArgumentError, match=r"process, interval:SECONDS"):
        ReplayBuffer("cpu", "cpu", 5, directory=data, durability=text)
    assert not data.exists()


def test_a_level_that_needs_a_disk_needs_a_data_directory():
    with pytest.raises(ValidationError, match="needs a data_dir"):
        ServerConfig(address=LOCAL, durability="power")


def test_rows_that_the_disk_lost_with_the_power_are_not_returned_and_may_be_sent_again(tmp_path):
    """The disk of a machine that lost its power has the journal, and not all of the rows that were written since the last flush."""
    with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "live", durability="interval:1000") as buffer:
        for first in range(0, 8, 2):
            buffer.add_batch(rows(2, first))
        shutil.copytree(tmp_path / "live", tmp_path / "disk")
    (action,) = (path for path in (tmp_path / "disk").glob("rows-*/field_000.memmap"))
    torch.from_file(str(action), shared=True, size=10, dtype=torch.int64)[5] = 0
    with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "disk", durability="interval:1000") as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2, 3]
        buffer.add_batch(rows(2, 4))
        assert numbers(buffer.sample_all()) == [0, 1, 2, 3, 4, 5]


def test_rows_are_flushed_in_the_background(data, tmp_path):
    with ReplayBuffer("cpu", "cpu", 10, directory=data, durability="interval:0.05") as buffer:
        for first in range(0, 50, 5):
            buffer.add_batch(rows(5, first))
        deadline, copies = time.monotonic() + 10, itertools.count()
        while unflushed(data, tmp_path / f"copy-{next(copies)}"):
            assert time.monotonic() < deadline


def unflushed(data: Path, copy: Path) -> object:
    """The blocks that are not on the disk yet, by a journal that is in use."""
    shutil.copytree(data, copy)
    return read_journal(copy).unflushed
