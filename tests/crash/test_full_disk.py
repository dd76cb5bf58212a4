"""Disks that are full, and disks that fail: a client is told, whatever was acknowledged stays, and nothing that was not is taken for it."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from disks import ext4_image, fill, memory_disk, mounted, mounts, quick_path, read_only, repair
from sealed import insert, insert_with, sealed, window
from tensordict import TensorDict

from children import Command, command
from conftest import files_under
from tdreplay.errors import ReplayError, ResourceExhaustedError, ServerUnavailableError, StorageError
from tdreplay.samplers import MaxHeap, Uniform
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.data_directory import table_directory
from tdreplay_server.tables.table import Table

__all__ = ["mounts", "quick_path"]

ROW_BYTES = 8 * 16 + 16
SLOTS, FEW, BLOCK, PAGE = 2000, 100, 16, 4096
MOST = 5000
"""Blocks after which a disk that is full has not been noticed."""
Errors: TypeAlias = "tuple[type[ReplayError], ...]"
pytestmark = pytest.mark.usefixtures("mounts")


@contextmanager
def served(scratch: Path, data_dir: Path, durability: str = "process") -> Iterator[tuple[Command, RemoteReplayBuffer]]:
    """The command over a data directory, and a client of its table."""
    arguments = ("serve", "--address", "127.0.0.1:0", "--data-dir", data_dir, "--durability", durability)
    with command(scratch, "tdreplay-server", *arguments) as server, RemoteReplayBuffer(server.ready(), buffer_size=SLOTS, timeout=5) as buffer:
        yield server, buffer


def add_until(error: type[ReplayError] | Errors, buffer: RemoteReplayBuffer, acknowledged: int) -> int:
    """Adds rows until that fails, and gives how many are acknowledged then."""
    for first in range(acknowledged, acknowledged + MOST * BLOCK, BLOCK):
        try:
            buffer.add_batch(sealed(first, BLOCK))
        except error:
            return first
    raise AssertionError(f"{MOST} batches were added without an error")


def check(found: range, acknowledged: int, durability: str = "") -> None:
    """Every acknowledged row that the ring has room for is there, and at most one block more, which may have overwritten the oldest ones.

    After a kill an interval has up to half of the ring less: the room for what may come until the next flush.
    """
    assert acknowledged <= found.stop <= acknowledged + BLOCK
    assert found.start <= max(0, acknowledged + BLOCK - SLOTS // (2 if durability.startswith("interval") else 1))


def test_a_table_that_the_disk_has_no_room_for_is_refused_and_leaves_nothing_behind(tmp_path):
    with memory_disk(tmp_path / "disk", 8 << 20) as disk, served(tmp_path / "server", disk / "data") as (server, buffer):
        before = files_under(disk)
        with RemoteReplayBuffer(buffer.address, table="large", buffer_size=1_000_000) as large:
            for _ in range(3):
                with pytest.raises(ResourceExhaustedError, match=rf"{1_000_000 * ROW_BYTES} bytes"):
                    large.add_batch(sealed(0, BLOCK))
            assert large.size == 0
            large.drop()
        assert files_under(disk).keys() == before.keys()
        buffer.add_batch(sealed(0, BLOCK))
        assert window(buffer.sample_all()) == range(BLOCK)
        assert not server.child.ended


def test_a_table_that_leaves_too_little_of_the_disk_for_others_is_refused_and_changes_nothing(tmp_path):
    with memory_disk(tmp_path / "disk", 32 << 20) as disk, served(tmp_path / "server", disk / "data") as (server, buffer):
        rows = (shutil.disk_usage(disk).free - (1 << 20)) // 8
        with RemoteReplayBuffer(buffer.address, table="greedy", buffer_size=rows) as greedy:
            with pytest.raises(ResourceExhaustedError, match="kept for small tables"):
                greedy.add_batch(TensorDict({"one": torch.zeros(1, dtype=torch.int64)}, [1]))
            assert greedy.state().schema is None
            buffer.add_batch(sealed(0, BLOCK))
            with RemoteReplayBuffer(buffer.address, table="other", buffer_size=SLOTS) as other:
                other.add_batch(sealed(0, BLOCK))
            greedy.reset(1000)
            greedy.add_batch(sealed(0, BLOCK))
            assert window(greedy.sample_all()) == range(BLOCK)
        assert not server.child.ended


@pytest.mark.parametrize("durability", ["process", "interval:0.05", "power"])
def test_on_a_full_disk_no_table_is_made_each_can_be_dropped_and_a_restart_says_what_is_missing(durability, tmp_path):
    with memory_disk(tmp_path / "disk", 16 << 20) as disk:
        with served(tmp_path / "server", disk / "data", durability) as (server, buffer):
            buffer.add_batch(sealed(0, BLOCK))
            dropped = RemoteReplayBuffer(buffer.address, table="dropped", buffer_size=SLOTS)
            dropped.add_batch(sealed(0, BLOCK))
            acknowledged = BLOCK
            filler = fill(disk)
            for _ in range(3):
                with pytest.raises(ResourceExhaustedError, match="full"):
                    RemoteReplayBuffer(buffer.address, table="new", buffer_size=SLOTS)
                with pytest.raises(ResourceExhaustedError, match="full"):
                    buffer.checkpoint("one")
            assert RemoteReplayBuffer.tables(buffer.address) == ["default", "dropped"]
            assert sorted(path.name for path in (disk / "data/tables").iterdir()) == ["default", "dropped"]
            dropped.drop()
            fill(disk / "data").rename(disk / "filler-2")
            assert not server.child.ended
        # It was killed.
        with command(
            tmp_path / "full", "tdreplay-server", "serve", "--address", "127.0.0.1:0", "--data-dir", disk / "data", "--durability", durability
        ) as restarted:
            said = [line for line in restarted.stderr.splitlines() if line.startswith("tdreplay-server: ")] if restarted.ended() else ["ready"]
        print(said)
        assert len(said) == 1
        assert "full" in said[0]
        assert "Traceback" not in restarted.stderr
        filler.unlink()
        with served(tmp_path / "again", disk / "data", durability) as (_, buffer):
            check(window(buffer.sample_all()), acknowledged, durability)
            assert RemoteReplayBuffer.tables(buffer.address) == ["default"]


def test_a_directory_that_cannot_be_written_to_is_verified(tmp_path):
    with memory_disk(tmp_path / "disk", 16 << 20) as disk:
        with served(tmp_path / "server", disk / "data") as (_, buffer):
            buffer.add_batch(sealed(0, BLOCK))
            buffer.checkpoint("one")
        with read_only(disk):
            for directory, lines in ((disk / "data", 3), (disk / "data/tables/default", 1), (disk / "data/checkpoints/default/one", 1)):
                assert len(list(verified(directory))) == lines
            (disk / "data").joinpath("LOCK").stat()
            with command(tmp_path / "refused", "tdreplay-server", "serve", "--address", "127.0.0.1:0", "--data-dir", disk / "data") as refused:
                assert refused.ended() == 1
            assert "Read-only file system" in refused.stderr
            assert "Traceback" not in refused.stderr


def test_where_there_is_room_for_the_rows_but_not_for_the_journal_the_rows_go_too(tmp_path):
    with memory_disk(tmp_path / "disk", 8 << 20) as disk, closing(Table(TableConfig(SLOTS), directory=disk / "table")) as table:
        log = disk / "table" / "journal.sqlite-wal"
        while log.stat().st_size % PAGE < PAGE // 2:  # The last page of the log has no room for a commit.
            table.reset()
        filler = fill(disk)
        room = PAGE * sum(-(-SLOTS * row_bytes // PAGE) for row_bytes in (8, 8, 8 * 16))  # What the three columns need, to the page.
        os.truncate(filler, filler.stat().st_size // PAGE * PAGE - room)
        assert shutil.disk_usage(disk).free == room
        for _ in range(3):
            with pytest.raises(ResourceExhaustedError, match="the journal is full"):
                insert(table, sealed(0, BLOCK))
            assert not list((disk / "table").glob("rows-*"))
        filler.unlink()
        assert insert(table, sealed(0, BLOCK)) == 0


@pytest.mark.parametrize("sampler", [Uniform(), MaxHeap()], ids=str)
def test_where_there_is_room_for_the_rows_but_not_for_their_priorities_the_rows_go_too(sampler, tmp_path):
    columns = {"number": torch.arange(BLOCK)}
    schema = Schema.of(columns, ())
    with memory_disk(tmp_path / "disk", 64 << 20) as disk, closing(Table(TableConfig(1 << 20, sampler=sampler), directory=disk / "table")) as table:
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - (14 << 20))
        if sampler.has_priorities:
            for _ in range(3):
                with pytest.raises(ResourceExhaustedError, match=f"{8 << 20} bytes are missing"):
                    table.insert(columns, schema, BLOCK)
                assert not list((disk / "table").glob("rows-*/*"))
            filler.unlink()
        assert table.insert(columns, schema, BLOCK) == (0, False)


def test_on_a_full_disk_priorities_are_updated_and_those_of_refused_rows_are_nobodys(quick_path, tmp_path):
    with memory_disk(tmp_path / "disk", 2 << 20) as disk, closing(Table(TableConfig(FEW, sampler=MaxHeap()), directory=disk / "table")) as table:
        insert_with(table, sealed(0, FEW), np.arange(FEW) + 0.5)
        filler = fill(disk)
        acknowledged = FEW
        with suppress(ResourceExhaustedError):
            while True:
                insert_with(table, sealed(acknowledged, 1), np.array([7000.0]))
                acknowledged += 1
        updated = np.arange(acknowledged - FEW + 1, acknowledged, 2)
        assert table.update_priorities(updated, updated + 500.0) == (len(updated), 0)
        shutil.copytree(disk / "table", quick_path / "killed")
        filler.unlink()
    list(verified(quick_path / "killed"))
    with ReplayBuffer("cpu", "cpu", FEW, sampler=MaxHeap(), directory=quick_path / "killed") as buffer:
        batch = buffer.sample_batch(buffer.size)
        found = dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))
    came_with = {row_id: row_id + 0.5 if row_id < FEW else 7000.0 for row_id in range(acknowledged)}
    expected = came_with | {row_id: row_id + 500.0 for row_id in updated.tolist()}
    assert found == {row_id: expected[row_id] for row_id in found}
    assert set(found) >= set(range(acknowledged - FEW + 1, acknowledged))


@pytest.mark.parametrize("end", ["space", "kill"])
@pytest.mark.parametrize("durability", ["process", "interval:0.05", "power"])
def test_a_disk_that_fills_up_under_the_journal_loses_no_acknowledged_row(durability, end, quick_path, tmp_path):
    with mounted(ext4_image(quick_path / "image", 16 << 20), tmp_path / "disk") as disk:
        with served(tmp_path / "server", disk / "data", durability) as (server, buffer):
            for first in range(0, 2 * SLOTS, BLOCK):
                buffer.add_batch(sealed(first, BLOCK))
            filler = fill(disk)
            acknowledged = add_until(ResourceExhaustedError, buffer, 2 * SLOTS)
            for _ in range(3):
                assert add_until(ResourceExhaustedError, buffer, acknowledged) == acknowledged
            check(window(buffer.sample_all()), acknowledged)
            while_full = acknowledged - 2 * SLOTS
            if end == "space":
                filler.unlink()
                for _ in range(SLOTS // BLOCK):
                    buffer.add_batch(sealed(acknowledged, BLOCK))
                    acknowledged += BLOCK
                check(window(buffer.sample_all()), acknowledged)
            assert not server.child.ended
        # It was killed.
        list(verified(disk / "data"))
        print(f"{while_full} rows acknowledged on a full disk, {acknowledged} in all; verified after a kill")
        filler.unlink(missing_ok=True)
        with served(tmp_path / "again", disk / "data", durability) as (_, buffer):
            found = window(buffer.sample_all())
            check(found, acknowledged, durability)
            buffer.add_batch(sealed(found.stop, BLOCK))
            assert window(buffer.sample_all()).stop == found.stop + BLOCK


@pytest.mark.parametrize("durability", ["process", "interval:60", "power"])
def test_wherever_in_an_insert_or_a_compaction_the_space_ends_nothing_is_lost(durability, quick_path, tmp_path, monkeypatch):
    """The journal is compacted often, forgets writers often, and the disk has room for few pages."""
    monkeypatch.setattr("tdreplay_server.durability.journal.COMMITS_TO_COMPACT", 7)
    monkeypatch.setattr("tdreplay_server.durability.journal.MAX_WRITERS", 12)
    acknowledged, stored = 0, Counter()
    for attempt in range(16):
        pages = attempt % 4
        with memory_disk(tmp_path / "disk", 2 << 20) as disk:
            if attempt:
                shutil.copytree(quick_path / "kept", disk / "table")
            with closing(Table(TableConfig(FEW), directory=disk / "table", durability=durability)) as table:
                acknowledged = insert_each(table, acknowledged, FEW + attempt)
                filler = fill(disk)
                os.truncate(filler, filler.stat().st_size // PAGE * PAGE - pages * PAGE)
                for _ in range(3):  # An error leaves nothing that the next insert stumbles over.
                    with suppress(ResourceExhaustedError):
                        for _ in range(20):
                            acknowledged = insert_each(table, acknowledged, 1)
                            stored[pages] += 1
                check_kill(disk / "table", quick_path / "full", acknowledged, durability)
                filler.unlink()
                acknowledged = insert_each(table, acknowledged, 1 + attempt)
                check_kill(disk / "table", quick_path / "freed", acknowledged, durability)
            shutil.rmtree(quick_path / "kept", ignore_errors=True)
            shutil.copytree(disk / "table", quick_path / "kept")
    print(f"rows stored on disks with so many pages left: {dict(stored)}; {acknowledged} in all")
    assert stored[0] < stored[3]


def insert_each(table: Table, first: int, rows: int) -> int:
    """Inserts rows, each of another writer, and gives the number of the next one."""
    for number in range(first, first + rows):
        assert insert(table, sealed(number, 1), f"writer-{number}", 1) == number
    return first + rows


def check_kill(directory: Path, copy: Path, acknowledged: int, durability: str) -> None:
    """What a kill would leave now: it is verified, and opened."""
    shutil.copytree(directory, copy)
    list(verified(copy))
    with ReplayBuffer("cpu", "cpu", FEW, directory=copy, durability=durability) as buffer:
        found = window(buffer.sample_all())
    assert found.stop in (acknowledged, acknowledged + 1)
    assert found.start <= acknowledged + 1 - (FEW // 2 if durability.startswith("interval") else FEW)
    shutil.rmtree(copy)


# -- disks that fail --------------------------------------------------------------------------------------------------------------------------


def ends_by_itself(server: Command, buffer: RemoteReplayBuffer, acknowledged: int, why: str, also: Errors = ()) -> int:
    """Adds rows until the disk fails: the client is told, and the server ends. Gives how many are acknowledged."""
    acknowledged = add_until((StorageError, *also), buffer, acknowledged)
    assert server.ended() == 1
    (line,) = (line for line in server.stderr.splitlines() if line.startswith("tdreplay-server: "))
    assert why in line
    assert "Traceback" not in server.stderr
    assert server.stderr.count("the disk failed") == 1
    print(f"{acknowledged} rows acknowledged; then: {line}")
    return acknowledged


@pytest.mark.parametrize("durability", ["process", "interval:0.05", "power"])
def test_a_journal_that_cannot_be_written_ends_the_server_and_loses_no_acknowledged_row(durability, quick_path, tmp_path):
    """A limit on the size of files makes each write beyond it fail (EFBIG): SQLite has an I/O error."""
    data_dir = quick_path / "data"
    with served(tmp_path / "server", data_dir, durability) as (server, buffer):
        for first in range(0, 2 * SLOTS, BLOCK):
            buffer.add_batch(sealed(first, BLOCK))
        log = table_directory(data_dir, "default") / "journal.sqlite-wal"
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 20_000, resource.RLIM_INFINITY))
        acknowledged = ends_by_itself(server, buffer, 2 * SLOTS, "the journal cannot be written")
    list(verified(data_dir))
    with served(tmp_path / "again", data_dir, durability) as (_, buffer):
        check(window(buffer.sample_all()), acknowledged, durability)


@pytest.mark.parametrize("durability", ["interval:0.05", "power"])
def test_rows_that_cannot_be_written_end_the_server_and_lose_no_row_that_was_flushed(durability, tmp_path):
    """The file behind a loop device lies on a disk without room: the loop device has I/O errors, and the file system on it does not know why."""
    # The flush between two inserts finds it: the server may be gone when the next one comes.
    also = () if durability == "power" else (ServerUnavailableError,)
    with memory_disk(tmp_path / "below", 24 << 20) as below:
        image = ext4_image(below / "image", 48 << 20)
        with mounted(image, tmp_path / "disk") as disk, served(tmp_path / "server", disk / "data", durability) as (server, buffer):
            buffer.add_batch(sealed(0, PAGE // 8))  # Each column has whole pages.
            time.sleep(0.5)  # Ten intervals.
            filler = fill(below)
            acknowledged = ends_by_itself(server, buffer, PAGE // 8, "cannot be written", also)
        filler.unlink()
        repair(image)
        with mounted(image, tmp_path / "disk") as disk, served(tmp_path / "again", disk / "data", durability) as (_, buffer):
            found = window(buffer.sample_all())
    flushed = acknowledged if durability == "power" else PAGE // 8
    assert found.start == 0
    assert flushed <= found.stop <= acknowledged + BLOCK
