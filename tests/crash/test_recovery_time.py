"""A server that died with 10 GB of rows is back in less than two seconds: it reads its journal, and of the rows only those that
were not flushed, where it flushed them now and then.

The file system gives space without writing to it, so that little of the 10 GB is ever touched.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealed import insert, sealed, window

from children import child_of
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.tables.registry import Tables

ROW_BYTES = 8 * 1024 + 16
ROWS, BLOCK = 4096, 64
SECONDS, READ_BYTES = 2.0, 128 << 20


@pytest.fixture
def data_dir(tmp_path) -> Iterator[Path]:
    yield tmp_path / "data"
    shutil.rmtree(tmp_path / "data")


def capacity(directory: Path) -> int:
    """In rows: 10 GB, or half of what the disk has left where that is less."""
    free = shutil.disk_usage(directory).free
    if free < 20e9:
        print(f"the disk has {free / 1e9:.1f} GB left: half of that in place of 10 GB")
    return int(min(10e9, free / 2)) // ROW_BYTES


def write_and_wait(data_dir: str, slots: int, durability: str) -> None:
    """In the child: writes some rows, and waits to be killed."""
    table = Tables(Path(data_dir), "cpu", slots, 1, durability)["default"]
    for first in range(0, ROWS, BLOCK):
        insert(table, sealed(first, BLOCK, 1024))
    print("written", flush=True)
    time.sleep(60)


def serve(data_dir: str, durability: str) -> None:
    """In the child, with everything imported: a server, and what it took to start it."""
    before, start = _read(), time.perf_counter()
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=data_dir, durability=durability)) as server:
        seconds = time.perf_counter() - start
        print(server.address, seconds, *(now - then for now, then in zip(_read(), before, strict=True)), flush=True)
        server.wait()


def _read() -> tuple[int, int]:
    """What this process read so far, in bytes: by calls, and of the pages of files that are mapped into its memory."""
    calls = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1]
    mapped = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    return int(calls), int(mapped) * 1024


@pytest.mark.parametrize("durability", ["process", "interval:1", "power"])
def test_ten_gigabytes_are_back_in_two_seconds(durability, data_dir, tmp_path):
    slots, start = capacity(tmp_path), time.perf_counter()
    with child_of(write_and_wait, str(data_dir), slots, durability):
        made = time.perf_counter() - start
    files = [path.stat() for path in data_dir.rglob("*.memmap")]
    size, space = sum(file.st_size for file in files), sum(file.st_blocks * 512 for file in files)
    assert space >= size == slots * ROW_BYTES
    with child_of(serve, str(data_dir), durability) as child:
        address, *figures = child.line.split()
        seconds, called, mapped = map(float, figures)
        print(f"{size / 1e9:.1f} GB, made in {made:.2f} s: a server is ready in {seconds:.3f} s, with {called:.0f} bytes read, {mapped:.0f} mapped")
        assert seconds < SECONDS
        assert called < READ_BYTES
        assert mapped < READ_BYTES
        with RemoteReplayBuffer(address) as buffer:
            assert (buffer.buffer_size, buffer.size) == (slots, ROWS)
            assert window(buffer.sample_all()) == range(ROWS)
