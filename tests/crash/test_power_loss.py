"""The plug is pulled: what is on the disk at that moment is all that there is.

The data directory lies on an ext4 file system on a loop device. The server is stopped, the file behind the device is copied while it is mounted, and
the copy is mounted: ext4 replays its journal, as after a loss of power, and what was in the page cache of the file system alone is gone. It is
mounted with ``commit=300``, so that for the seconds of a test nothing comes to the disk but what the server flushes, or what the test flushes behind
its back.

What this does not show: the loop device writes to its file through the page cache, and the copy is read through the same. So it has all that ext4 has
written, also what a disk would still have in a cache of its own; that ext4 and the server ask for such caches to be flushed is not tested.

TDREPLAY_KILLS says how often; from 50 on the long form runs.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from disks import ext4_image, mounted, mounts, quick_path
from sealed import insert, insert_with, sealed, window

from children import child_of
from conftest import freeze
from tdreplay.errors import CorruptDataError, ReplayError
from tdreplay.samplers import MaxHeap, Sampler, Uniform
from tdreplay.table_config import TableConfig
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.durability import journal_state
from tdreplay_server.durability.data_directory import table_directory
from tdreplay_server.tables.table import Table

__all__ = ["mounts", "quick_path"]

ROUNDS = 5 if int(os.environ.get("TDREPLAY_KILLS", "0")) >= 50 else 1
IMAGE = 96 << 20
UNIFORM = Uniform()
SMALL, LARGE = 400, 200_000
"""Slots: some that a writer goes round several times, and more than it fills."""
ALLOWANCE = 0.5
"""Seconds. A flush brings to the disk what was acknowledged when it began, and the next one begins an interval after it ended: rows are at risk for
the interval and for two flushes, of some 20 ms each here, or more where others use the disk and the two cores."""
pytestmark = [
    pytest.mark.usefixtures("mounts"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def image(quick_path) -> Path:
    """Of an empty file system."""
    return ext4_image(quick_path / "image", IMAGE)


def serve(settings: dict[str, object]) -> None:
    """In the child: a server."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", **settings)) as server:
        print(server.address, flush=True)
        server.wait()


class Client:
    """Adds blocks of rows from a thread of its own until the server is gone, and notes when each was acknowledged."""

    block = 16

    def __init__(self, address: str) -> None:
        self.acknowledged: list[float] = []
        self._buffer = RemoteReplayBuffer(address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(ReplayError):
            while True:
                self._buffer.add_batch(sealed(len(self.acknowledged) * self.block, self.block))
                self.acknowledged.append(time.monotonic())

    def end(self) -> None:
        self._buffer.close()
        self._thread.join()

    def wait_for(self, rows: int) -> None:
        """Waits until so many rows are acknowledged."""
        deadline = time.monotonic() + 60
        while len(self.acknowledged) * self.block < rows:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} blocks are acknowledged"
            time.sleep(0.005)

    def rows_until(self, moment: float) -> int:
        """So many rows were acknowledged by then."""
        return self.block * sum(acknowledged <= moment for acknowledged in self.acknowledged)


@contextmanager
def flushing(disk: Path, wanted: bool) -> Iterator[None]:
    """Whatever the kernel may write to a disk by itself, it does, now and then: journal and rows in any order."""
    stop, draw = threading.Event(), random.Random(0)

    def run() -> None:
        while wanted and not stop.wait(draw.uniform(0, 0.2)):
            flush_some(disk, draw)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def flush_some(disk: Path, draw: random.Random) -> None:
    files = [path for path in disk.rglob("*") if path.is_file()]
    for path in draw.sample(files, len(files) // 2):
        with suppress(FileNotFoundError), path.open("rb") as file:
            os.fdatasync(file.fileno())


def pull_the_plug(image: Path, slots: int, durability: str, seconds: float, *, flushed: bool) -> tuple[Client, float]:
    """A server works for so long, and stops: who wrote to it, and when it stopped. What is on its disk then is in ``pulled``, beside the image.

    However slow the disk is, a small ring was written to more than three times over.
    """
    with mounted(image, image.with_name("disk"), "commit=300") as disk:
        settings = {"data_dir": str(disk / "data"), "buffer_size": slots, "durability": durability}
        with child_of(serve, settings) as child:
            client = Client(child.line)
            with flushing(disk, flushed):
                client.wait_for(1)
                time.sleep(seconds)
                client.wait_for(3 * slots + client.block if slots == SMALL else 0)
            freeze(child.pid)
            stopped = time.monotonic()
            shutil.copy(image, image.with_name("pulled"))
            child.kill()
            client.end()
    return client, stopped


@contextmanager
def reopened(image: Path, slots: int, durability: str, sampler: Sampler | None = None) -> Iterator[ReplayBuffer]:
    with mounted(image, image.with_name("again")) as disk:
        table = table_directory(disk / "data", "default")
        with ReplayBuffer("cpu", "cpu", slots, sampler=sampler, directory=table, durability=durability) as buffer:
            yield buffer


CASES = [(slots, flushed) for slots in (SMALL, LARGE) for flushed in (True, False) if ROUNDS > 1 or flushed == (slots == SMALL)]
cases = pytest.mark.parametrize(("slots", "flushed"), CASES, ids=lambda value: {True: "flushed", False: "quiet"}.get(value, str(value)))
rounds = pytest.mark.parametrize("number", range(ROUNDS))


@cases
@rounds
def test_with_power_every_acknowledged_row_is_there(slots, flushed, number, image):
    seconds = random.Random(number).uniform(0.6, 1.2)
    client, stopped = pull_the_plug(image, slots, "power", seconds, flushed=flushed)
    acknowledged = client.rows_until(stopped)
    with reopened(image.with_name("pulled"), slots, "power") as buffer:
        found = window(buffer.sample_all())
    print(f"{acknowledged} rows acknowledged, {acknowledged / slots:.1f} times the ring; found {found}")
    assert found.stop - acknowledged in (0, client.block)  # One block may be stored, and its acknowledgement on its way.
    assert found.start <= max(0, acknowledged + client.block - slots)
    assert (acknowledged > 3 * slots) == (slots == SMALL)


@cases
@rounds
def test_with_an_interval_the_rows_of_the_last_second_may_be_lost_and_no_others(slots, flushed, number, image):
    seconds = random.Random(number).uniform(2.2, 3.2)
    client, stopped = pull_the_plug(image, slots, "interval:1", seconds, flushed=flushed)
    acknowledged, safe = client.rows_until(stopped), client.rows_until(stopped - 1 - ALLOWANCE)
    with reopened(image.with_name("pulled"), slots, "interval:1") as buffer:
        found = window(buffer.sample_all())
    lost = stopped - client.acknowledged[found.stop // client.block] if found.stop < acknowledged else 0
    print(f"{acknowledged} rows acknowledged, {acknowledged / slots:.1f} times the ring; found {found}, lost those of {lost:.2f} s")
    assert 0 < safe <= found.stop <= acknowledged + client.block
    # Room for as many rows as may come until the next flush, at most half of the ring, is made ahead.
    assert found.start <= max(0, acknowledged + client.block - slots // 2)
    assert (acknowledged > 3 * slots) == (slots == SMALL)


# -- one thing at a time, without a server ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(image: Path, durability: str, slots: int = SMALL, sampler: Sampler = UNIFORM) -> Iterator[Table]:
    """A table on an image. What is on the disk at the end is in ``pulled``, beside it; only then is the table closed."""
    with mounted(image, image.with_name("disk"), "commit=300") as disk:
        config = TableConfig(slots, sampler=sampler)
        with closing(Table(config, directory=disk / "data" / "tables" / "default", durability=durability)) as table:
            yield table
            shutil.copy(image, image.with_name("pulled"))


def test_power_counts_from_when_it_is_chosen_for_a_table_that_had_another_level(image):
    with mounted(image, image.with_name("disk"), "commit=300") as disk:
        directory = disk / "data" / "tables" / "default"
        with closing(Table(TableConfig(SMALL), directory=directory)) as table:
            for first in range(0, 100, 10):
                insert(table, sealed(first, 10))
        with closing(Table(TableConfig(SMALL), directory=directory, durability="power")) as table:
            shutil.copy(image, image.with_name("empty"))
            insert(table, sealed(100, 10))
            shutil.copy(image, image.with_name("pulled"))
    for name, rows in (("empty", 100), ("pulled", 110)):
        with reopened(image.with_name(name), SMALL, "power") as buffer:
            assert window(buffer.sample_all()) == range(rows)


def test_rows_after_a_rewind_are_flushed_though_they_are_as_many_as_before(image):
    with opened(image, "interval:0.2") as table:
        insert(table, sealed(0, 100))
        time.sleep(0.6)
        table.rewind(SMALL, 50, 50)
        insert(table, sealed(50, 50))
        time.sleep(0.6)
    with reopened(image.with_name("pulled"), SMALL, "interval:0.2") as buffer:
        assert window(buffer.sample_all()) == range(100)


def test_rows_that_reach_the_disk_before_the_journal_says_what_they_overwrote_are_not_taken_for_those(image):
    with opened(image, "interval:0.5", 100) as table:
        insert(table, sealed(0, 100))
        time.sleep(0.75)
        for first in range(100, 180, 10):
            insert(table, sealed(first, 10))
        flush_rows(image)
    with reopened(image.with_name("pulled"), 100, "interval:0.5") as buffer:
        found = window(buffer.sample_all())
    assert found.stop >= 100
    assert len(found) <= 50


def flush_rows(image: Path) -> None:
    """Brings the rows to the disk, and nothing else."""
    flush(image, "*.memmap")


def flush(image: Path, pattern: str) -> None:
    """Brings some files to the disk."""
    for path in image.with_name("disk").rglob(pattern):
        with path.open("rb") as file:
            os.fdatasync(file.fileno())


def test_after_a_loss_of_power_a_table_of_the_level_process_is_opened_with_a_warning_or_not_at_all(image, monkeypatch, caplog):
    """The rows came to the disk after they were overwritten, and the journal did not."""
    with opened(image, "process", 100) as table:
        for first in range(0, 100, 10):
            insert(table, sealed(first, 10))
        os.sync()
        for first in range(100, 150, 10):
            insert(table, sealed(first, 10))
        flush_rows(image)
    monkeypatch.setattr(journal_state, "boot_id", lambda: "another start")
    caplog.set_level(logging.WARNING)
    with suppress(CorruptDataError), reopened(image.with_name("pulled"), 100, "process") as buffer:
        with pytest.raises(AssertionError, match="another's id"):  # Else this test shows nothing.
            window(buffer.sample_all())
        assert "rows may be lost or broken" in caplog.text


# -- priorities -------------------------------------------------------------------------------------------------------------------------------


def priorities(buffer: ReplayBuffer) -> dict[int, float]:
    """The ids of the rows, and their priorities."""
    batch = buffer.sample_batch(buffer.size)
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


def test_with_power_every_acknowledged_row_has_the_priority_that_it_came_with(image, monkeypatch):
    with opened(image, "power", 100, MaxHeap()) as table:
        for first in range(0, 150, 10):
            insert_with(table, sealed(first, 10), np.arange(first, first + 10) + 0.5)
    monkeypatch.setattr(journal_state, "boot_id", lambda: "another start")
    with reopened(image.with_name("pulled"), 100, "power", MaxHeap()) as buffer:
        assert priorities(buffer) == {row_id: row_id + 0.5 for row_id in range(50, 150)}


@pytest.mark.parametrize("written", ["rows", "rows and priorities"])
def test_with_an_interval_rows_that_reach_the_disk_before_their_priorities_have_the_highest_one(written, image, monkeypatch):
    """What a row had for a priority is lost with the power, where it was not flushed. It must not be 0 by accident: the row would never be drawn."""
    with opened(image, "interval:0.5", 100, MaxHeap()) as table:
        insert_with(table, sealed(0, 30), np.arange(30) + 0.5)
        time.sleep(1.25)
        insert_with(table, sealed(30, 10), np.full(10, 7.0))
        for pattern in ("field_*.memmap", "*.sqlite*", *(["state_*.memmap"] if written != "rows" else [])):
            flush(image, pattern)
    monkeypatch.setattr(journal_state, "boot_id", lambda: "another start")
    with reopened(image.with_name("pulled"), 100, "interval:0.5", MaxHeap()) as buffer:
        found = priorities(buffer)
    assert {row_id: one for row_id, one in found.items() if row_id < 30} == {row_id: row_id + 0.5 for row_id in range(30)}
    assert {row_id: one for row_id, one in found.items() if row_id >= 30} == dict.fromkeys(range(30, 40), 29.5)
