"""SIGKILL while a checkpoint replaces another one, and checkpoints of a table that is being written to: always the rows of one moment.

TDREPLAY_KILLS says how often; from 50 on the long form runs.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from disks import quick_path
from sealed import insert, numbers, sealed, window

from children import child_of
from tdreplay.table_config import TableConfig
from tdreplay_server import ReplayBuffer
from tdreplay_server.checkpoints.manifest import read_manifest
from tdreplay_server.checkpoints.restore import restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.durability.data_directory import table_directory
from tdreplay_server.tables.registry import Tables
from tdreplay_server.tables.table import Table

__all__ = ["quick_path"]

KILLS = 50 if int(os.environ.get("TDREPLAY_KILLS", "0")) >= 50 else 8
SLOTS, WORDS, BLOCK = 8192, 1024, 64
"""64 MiB of rows, which a checkpoint takes a third of a second for."""
WRITERS, NUMBERS = 2, 1 << 40
pytestmark = pytest.mark.timeout(120 + 4 * KILLS)


def checkpoint_until_killed(data_dir: str, reported: str) -> None:
    """In the child: writes rows and, meanwhile, a checkpoint over and over. Notes the write count of each one that is made."""
    table = Tables(Path(data_dir), "cpu", SLOTS, 1)["default"]
    threading.Thread(target=write_for_ever, args=(table,), daemon=True).start()
    while table.state().write_count < SLOTS // 2:
        time.sleep(0.001)
    report = os.open(reported, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    print("writes", flush=True)
    while True:
        os.write(report, f"{table.checkpoint('c').write_count}\n".encode())


def write_for_ever(table: Table) -> None:
    number = table.state().write_count
    while True:
        assert insert(table, sealed(number, BLOCK, WORDS)) == number
        number += BLOCK


@pytest.fixture
def data_dir(quick_path) -> Path:
    """With a table and its checkpoint "c"."""
    with closing(Tables(quick_path / "data", "cpu", SLOTS, 1)) as tables:
        insert(tables["default"], sealed(0, 1000, WORDS))
        tables["default"].checkpoint("c")
    return quick_path / "data"


def test_whenever_a_server_dies_its_checkpoint_is_the_old_one_or_the_new_one(data_dir, quick_path):
    checkpoints, reported, seen, wait = data_dir / "checkpoints" / "default", quick_path / "reported", Counter(), random.Random(0)
    reported.write_text("1000\n")
    old = 1000
    for kill in range(KILLS):
        with child_of(checkpoint_until_killed, str(data_dir), str(reported)) as child:
            time.sleep(wait.uniform(0, 0.6))
            child.kill()
        said, manifest = int(reported.read_text().split()[-1]), read_manifest(checkpoints / "c")
        assert manifest.write_count >= said
        seen["the old one" if manifest.write_count == old else "one that was reported" if manifest.write_count == said else "the new one"] += 1
        seen["half of one left behind"] += any(checkpoints.glob(".new-*"))
        old = manifest.write_count
        (line,) = verified(checkpoints / "c")
        assert "every byte checked" in line
        assert restored(checkpoints / "c", quick_path / f"restored-{kill}") == range(manifest.write_count - manifest.rows, manifest.write_count)
    print(f"{KILLS} kills: {dict(seen)}; {old} rows written")
    assert seen["half of one left behind"] > KILLS / 2
    with closing(Tables(data_dir, "cpu", None, 1)):
        assert sorted(path.name for path in checkpoints.iterdir()) == ["c"]


def restored(checkpoint: Path, target: Path) -> range:
    """The row ids of a checkpoint, all of whose rows are whole."""
    with restored_buffer(checkpoint, target) as buffer:
        found = window(buffer.sample_all())
    shutil.rmtree(target)
    return found


@contextmanager
def restored_buffer(checkpoint: Path, target: Path) -> Iterator[ReplayBuffer]:
    ring = restore(checkpoint, target, "default")
    with ReplayBuffer("cpu", "cpu", ring.buffer_size, directory=table_directory(target, "default")) as buffer:
        yield buffer


@dataclass
class Writing:
    """A thread that writes rows of its own numbers while the context is open, and notes which ids they got."""

    table: Table
    writer: int
    firsts: list[int] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Writing:
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def run(self) -> None:
        while not self.stop.is_set():
            batch, start = sealed(self.writer * NUMBERS + len(self.firsts) * BLOCK, BLOCK, WORDS), time.perf_counter()
            self.firsts.append(insert(self.table, batch))
            self.took.append(time.perf_counter() - start)

    @property
    def by_id(self) -> dict[int, int]:
        """The first row id of a block -> its first number."""
        return {first: self.writer * NUMBERS + block * BLOCK for block, first in enumerate(self.firsts)}


def test_a_checkpoint_holds_one_moment_while_writers_wrap_the_ring(quick_path):
    with closing(Table(TableConfig(SLOTS), directory=quick_path / "table")) as table:
        with ExitStack() as stack:
            writers = [stack.enter_context(Writing(table, number)) for number in range(WRITERS)]
            while table.state().write_count < 2 * SLOTS:
                time.sleep(0.01)

            def wait_for_wraps(*_: int) -> None:
                """However fast the disk is, the ring wraps twice before the checkpoint is at its end."""
                while table.state().write_count < begun + 2 * SLOTS:
                    time.sleep(0.001)

            begun, before, start = table.state().write_count, [len(writer.took) for writer in writers], time.perf_counter()
            made = table.checkpoint("c", progress=wait_for_wraps)
            took, ended = time.perf_counter() - start, table.state().write_count
            after = [len(writer.took) for writer in writers]
    pauses = [max(writer.took[low:high]) for writer, low, high in zip(writers, before, after, strict=True)]
    alone = max(max(writer.took[:low]) for writer, low in zip(writers, before, strict=True))
    wraps = (ended - begun) / SLOTS
    print(f"a checkpoint of {made.bytes} bytes took {took:.2f} s; the ring wrapped {wraps:.1f} times; longest pause of an insert", end=" ")
    print(f"{max(pauses) * 1000:.0f} ms, before it {alone * 1000:.0f} ms")
    assert begun <= made.write_count <= ended
    assert made.rows == SLOTS
    assert wraps >= 2
    assert max(pauses) < 1.0
    with restored_buffer(Path(made.path), quick_path / "restored") as buffer:
        batch = buffer.sample_all()
    order = np.argsort(batch["row_id"].numpy())
    number, row_id = numbers(batch)[order], batch["row_id"].numpy()[order]
    assert np.array_equal(row_id, np.arange(made.write_count - SLOTS, made.write_count))
    by_id = writers[0].by_id | writers[1].by_id
    assert np.array_equal(number, [by_id[row - row % BLOCK] + row % BLOCK for row in row_id.tolist()])
