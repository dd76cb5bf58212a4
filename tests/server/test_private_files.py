"""What lies in a data directory is for its user alone, and is what it seems: no link is followed, and nothing that blocks is opened."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import files_under, numbers, rows
from tdreplay.errors import DirectoryInUseError, FailedPreconditionError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.checkpoints.restore import restore
from tdreplay_server.checkpoints.verify import verified

LOCAL = "127.0.0.1:0"


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def config(data: Path, **settings: object) -> ServerConfig:
    return ServerConfig(**{"address": LOCAL, "data_dir": data, "buffer_size": 10, **settings})


def fill(data: Path) -> None:
    """A table with two rows, and a checkpoint of them."""
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(2))
        buffer.checkpoint("one")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "data")
    return tmp_path / "data"


def open_to_others(directory: Path) -> list[str]:
    """What others than this user may do anything with."""
    return [f"{path} {oct(path.stat().st_mode)}" for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077]


# -- modes ------------------------------------------------------------------------------------------------------------------------------------


def test_only_this_user_can_use_what_a_server_makes_whatever_the_umask(umask, tmp_path):
    data, socket = tmp_path / "data", tmp_path / "socket"
    with ReplayServer(config(data, address=f"unix:{socket}")) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(20))
        buffer.checkpoint("one")
        buffer.reset()
        buffer.add_batch(rows(20))
        assert open_to_others(data) == []
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert {path.name for path in data.rglob("journal*")} >= {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite.checksums"}
    assert open_to_others(data) == []
    restore(data / "checkpoints/default/one", tmp_path / "restored", "default")
    assert open_to_others(tmp_path / "restored") == []
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in data.rglob("*") if path.is_file()} == {"0o600"}


def test_only_this_user_can_use_what_a_buffer_in_process_makes(umask, tmp_path):
    with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / "table") as buffer:
        buffer.add_batch(rows(3))
        buffer.checkpoint("one")
        assert open_to_others(tmp_path / "table") == []


def test_a_directory_that_others_could_read_is_opened_and_they_can_no_more(data):
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address) as buffer:
        assert numbers(buffer.sample_all()) == [0, 1]
        for path in (data / "LOCK", data / "tables/default/LOCK", data / "tables/default"):
            assert not path.stat().st_mode & 0o077, path


# -- links ------------------------------------------------------------------------------------------------------------------------------------


def as_link(path: Path) -> None:
    """Puts a link in the place of a file or a directory, to what was there."""
    elsewhere = path.parents[len(path.parts) - 1 - path.parts.index("data")] / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_fifo(path: Path) -> None:
    """Puts what blocks whoever opens it in the place of a file."""
    path.unlink()
    os.mkfifo(path)


TABLE = ["LOCK", "journal.sqlite", "journal.sqlite.checksums", "rows-000001/field_000.memmap"]
IN_DATA = ["LOCK", "tables", "tables/default", "checkpoints", "checkpoints/default", *(f"tables/default/{name}" for name in (*TABLE, "rows-000001"))]


@pytest.mark.parametrize("name", IN_DATA)
def test_a_link_in_a_data_directory_is_refused_and_nothing_changes(name, data, tmp_path):
    as_link(data / name)
    before = files_under(tmp_path)
    with pytest.raises(FailedPreconditionError, match="symbolic link"):
        ReplayServer(config(data)).start()
    if name != "checkpoints":  # Where it is empty but for what lies behind the link.
        with pytest.raises(FailedPreconditionError, match="symbolic link"):
            list(verified(data))
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("name", TABLE)
def test_what_would_block_a_start_is_refused(name, data):
    as_fifo(data / "tables/default" / name)
    with pytest.raises(FailedPreconditionError, match="must be a regular file"):
        ReplayServer(config(data)).start()


def test_links_that_are_planted_while_a_server_runs_are_not_followed(data, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("mine")
    with ReplayServer(config(data)) as server, RemoteReplayBuffer(server.address) as buffer:
        for link, call in (
            (data / "tables/new", lambda: RemoteReplayBuffer(server.address, table="new", buffer_size=3)),
            (data / "checkpoints/default/two", lambda: buffer.checkpoint("two")),
        ):
            link.symlink_to(elsewhere)
            with pytest.raises(FailedPreconditionError, match="symbolic link"):
                call()
        shutil.rmtree(data / "checkpoints/default")
        (data / "checkpoints/default").symlink_to(elsewhere)
        with pytest.raises(FailedPreconditionError, match="symbolic link"):
            buffer.checkpoint("three")
        buffer.add_batch(rows(1, 2))
        assert numbers(buffer.sample_all()) == [0, 1, 2]
    assert files_under(elsewhere) == {"file": b"mine"}


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", "field_000.rows", "acknowledged.json"])
def test_a_link_in_a_checkpoint_is_refused(name, data, tmp_path):
    as_link(data / "checkpoints/default/one" / name)
    for use in (lambda: list(verified(data / "checkpoints/default/one")), lambda: restore(data / "checkpoints/default/one", tmp_path / "new", "t")):
        with pytest.raises(FailedPreconditionError, match="symbolic link"):
            use()
    assert not (tmp_path / "new/tables/t").exists()


# -- locks ------------------------------------------------------------------------------------------------------------------------------------


def test_a_directory_that_many_make_at_once_belongs_to_one(tmp_path):
    def opened(number: int) -> ReplayBuffer | None:
        with suppress(DirectoryInUseError):
            return ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / f"table-{number // 8}")
        return None

    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            buffers = [buffer for buffer in threads.map(opened, range(16)) if buffer is not None]
            assert len(buffers) == 2
            for buffer in buffers:
                buffer.add_batch(rows(3))
                buffer.close()
            for number in range(2):
                with ReplayBuffer("cpu", "cpu", 10, directory=tmp_path / f"table-{number}") as buffer:
                    assert numbers(buffer.sample_all()) == [0, 1, 2]
                shutil.rmtree(tmp_path / f"table-{number}")


def test_a_table_that_a_process_uses_is_not_replaced_by_a_restored_one(data):
    with ReplayBuffer("cpu", "cpu", 10, directory=data / "tables/default") as buffer:
        with pytest.raises(DirectoryInUseError, match=str(os.getpid())):
            restore(data / "checkpoints/default/one", data, "default", replace=True)
        assert numbers(buffer.sample_all()) == [0, 1]
