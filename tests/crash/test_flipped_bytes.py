"""A single wrong byte in a checkpoint or a journal: `verify` reports it, nothing is restored from it, and no server starts on it.

The rows of a table are not among these files: they change all the time, and have no checksum.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from disks import quick_path
from sealed import insert, sealed, window

from children import child_of, command
from conftest import files_under
from tdreplay.errors import CorruptDataError
from tdreplay_server import ReplayBuffer
from tdreplay_server.checkpoints.restore import restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.data_directory import table_directory
from tdreplay_server.tables.registry import Tables
from tdreplay_server.tables.table import Table

__all__ = ["quick_path"]

FLIPS = 100
SLOTS, BLOCK = 256, 16


def write(table: Table, blocks: int) -> None:
    """Blocks of rows with numbers of several writers: the journal fills some pages."""
    for block in range(blocks):
        first = table.state().write_count
        insert(table, sealed(first, BLOCK), f"writer-{block % 5}", first // BLOCK + 1)


def write_and_wait(data_dir: str, durability: str) -> None:
    """In the child: writes rows, and waits to be killed."""
    write(Tables(Path(data_dir), "cpu", SLOTS, 1, durability)["default"], 60)
    print("written", flush=True)
    time.sleep(60)


@pytest.fixture
def closed(quick_path) -> Path:
    """A data directory that was closed, with a checkpoint."""
    with closing(Tables(quick_path / "closed", "cpu", SLOTS, 1)) as tables:
        write(tables["default"], 60)
        tables["default"].checkpoint("c")
    return quick_path / "closed"


def killed(path: Path, durability: str = "process") -> Path:
    """A data directory whose server was killed."""
    with child_of(write_and_wait, str(path), durability):
        return path


def spread(files: list[Path], draw: random.Random) -> Iterator[tuple[Path, int]]:
    """`FLIPS` places in files: in each file some, wherever they are in it."""
    for flip in range(FLIPS):
        path = files[flip % len(files)]
        yield path, draw.randrange(path.stat().st_size)


@contextmanager
def flipped(path: Path, place: int, draw: random.Random) -> Iterator[None]:
    """A byte of a file is another one while the context is open."""
    file = os.open(path, os.O_RDWR)
    byte = os.pread(file, 1, place)
    os.pwrite(file, bytes([byte[0] ^ draw.randrange(1, 256)]), place)
    try:
        yield
    finally:
        os.pwrite(file, byte, place)
        os.close(file)


def refused_by_verify(directory: Path) -> None:
    with pytest.raises(CorruptDataError):
        list(verified(directory))


def test_no_byte_of_a_checkpoint_can_change_unnoticed(closed, quick_path):
    checkpoint, draw, seen = closed / "checkpoints" / "default" / "c", random.Random(0), Counter()
    for number, (path, place) in enumerate(spread(sorted(checkpoint.iterdir()), draw)):
        with flipped(path, place, draw):
            refused_by_verify(checkpoint)
            refused_by_verify(closed)
            with pytest.raises(CorruptDataError):
                restore(checkpoint, quick_path / f"restored-{number}", "default")
        assert not list((quick_path / f"restored-{number}").glob("tables/*"))
        seen[path.name] += 1
    print(f"{seen.total()} of {FLIPS} flipped bytes reported, none restored: {dict(seen)}")
    restore(checkpoint, quick_path / "whole", "default")
    assert rows_of(quick_path / "whole") == range(60 * BLOCK - SLOTS, 60 * BLOCK)


def rows_of(data_dir: Path) -> range:
    with ReplayBuffer("cpu", "cpu", SLOTS, directory=table_directory(data_dir, "default")) as buffer:
        return window(buffer.sample_all())


def test_a_flipped_byte_leaves_the_table_that_a_restore_was_to_replace(closed):
    checkpoint, draw = closed / "checkpoints" / "default" / "c", random.Random(1)
    with closing(Tables(closed, "cpu", None, 1)) as tables:
        write(tables["default"], 1)
    before = files_under(closed)
    for path in sorted(checkpoint.iterdir()):
        with flipped(path, draw.randrange(path.stat().st_size), draw), pytest.raises(CorruptDataError):
            restore(checkpoint, closed, "default", replace=True)
    assert files_under(closed) == before


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_no_byte_of_a_journal_can_change_unnoticed(end, quick_path, request):
    data_dir = killed(quick_path / "killed") if end == "killed" else request.getfixturevalue("closed")
    draw, seen = random.Random(2), Counter()
    files = sorted(table_directory(data_dir, "default").glob("journal.sqlite*"))
    assert [file.name.removeprefix("journal.sqlite") for file in files] == ["", *(["-wal"] if end == "killed" else []), ".checksums"]
    before = files_under(data_dir)
    for path, place in spread(files, draw):
        with flipped(path, place, draw):
            broken = files_under(data_dir)
            refused_by_verify(data_dir)
            refused_by_verify(table_directory(data_dir, "default"))
            with pytest.raises(CorruptDataError, match="journal"):
                Tables(data_dir, "cpu", SLOTS, 1)
            assert files_under(data_dir) == broken
        seen[path.name] += 1
    assert files_under(data_dir) == before
    print(f"{seen.total()} of {FLIPS} flipped bytes reported, no server started: {dict(seen)}")
    list(verified(data_dir))
    assert rows_of(data_dir) == range(60 * BLOCK - SLOTS, 60 * BLOCK)


@pytest.mark.parametrize("durability", ["interval:60", "power"])
def test_verify_reports_a_log_that_ends_early_which_a_server_may_start_on(durability, quick_path, caplog):
    data_dir, draw, opened = killed(quick_path / "killed", durability), random.Random(3), 0
    log = table_directory(data_dir, "default") / "journal.sqlite-wal"
    for number in range(FLIPS // 4):
        with flipped(log, draw.randrange(32, log.stat().st_size), draw):  # After its header.
            refused_by_verify(data_dir)
            shutil.copytree(data_dir, quick_path / f"copy-{number}")
        caplog.clear()
        with closing(Tables(quick_path / f"copy-{number}", "cpu", SLOTS, 1)):
            opened += 1
        assert "as after a loss of power" in caplog.text
    print(f"{FLIPS // 4} flipped bytes reported, {opened} servers started, with a warning")


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite.checksums"])
def test_the_commands_end_with_status_1_and_one_line(name, quick_path):
    data_dir, draw = killed(quick_path / "killed"), random.Random(4)
    path = table_directory(data_dir, "default") / name
    with flipped(path, draw.randrange(path.stat().st_size), draw):
        before = files_under(data_dir)
        for arguments in (("verify", data_dir), ("serve", "--address", "127.0.0.1:0", "--data-dir", data_dir)):
            with command(quick_path / arguments[0], "tdreplay-server", *arguments) as refused:
                assert refused.ended() == 1
            (line,) = refused.stderr.splitlines()
            assert line.startswith("tdreplay-server: ")
            assert str(data_dir) in line
            assert name in line
        assert files_under(data_dir) == before


def test_the_commands_refuse_a_flipped_checkpoint(closed, quick_path):
    checkpoint, draw = closed / "checkpoints" / "default" / "c", random.Random(5)
    path = checkpoint / "field_001.rows"
    with flipped(path, draw.randrange(path.stat().st_size), draw):
        for arguments in (("verify", checkpoint), ("restore", checkpoint, quick_path / "restored")):
            with command(quick_path / arguments[0], "tdreplay-server", *arguments) as refused:
                assert refused.ended() == 1
            (line,) = refused.stderr.splitlines()
            assert str(path) in line
    assert not list((quick_path / "restored").glob("tables/*"))
