"""Rows that are in their files and not in memory: what is read of the disk, and that they are the right ones."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from tdreplay_server import ReplayBuffer
from tdreplay_server.storage.paging import PAGE_BYTES, page_runs

FLOATS = 4096
ROW_BYTES = 4 * FLOATS
SIZE = 16 << 10
BATCH = 64


def rows(first: int, count: int) -> TensorDict:
    """Rows of 16 KiB, and a little more, each of which says which it is."""
    number = torch.arange(first, first + count)
    return TensorDict({"n": number, "x": number.float()[:, None] + torch.arange(FLOATS)}, [count])


def check(batch: TensorDict) -> TensorDict:
    assert torch.equal(batch["n"], batch["row_id"])
    assert torch.equal(batch["x"], batch["n"].float()[:, None] + torch.arange(FLOATS))
    return batch


def open_buffer(directory: Path) -> ReplayBuffer:
    return ReplayBuffer("cpu", "cpu", SIZE, directory=directory)


def forget(directory: Path) -> None:
    """Has the kernel write what is not written yet, and give the memory back in which it keeps the rows."""
    for path in directory.rglob("*.memmap"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bytes_read() -> int:
    """From disks, by this process."""
    return int(re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


@pytest.fixture
def directory(tmp_path) -> Path:
    """With a full table of 256 MiB, of which nothing is in memory."""
    directory = tmp_path / "table"
    with open_buffer(directory) as buffer:
        for first in range(0, SIZE, 1024):
            buffer.add_batch(rows(first, 1024))
    forget(directory)
    before = bytes_read()
    with open_buffer(directory) as buffer:
        check(buffer.sample_batch(BATCH))
    if bytes_read() == before:
        pytest.skip(f"the file system of {tmp_path} keeps its files in memory")
    forget(directory)
    return directory


def test_random_batches_read_their_own_pages_and_no_others(directory):
    with open_buffer(directory) as buffer:
        check(buffer.sample_batch(BATCH))  # What it has to read tells that the rows are not in memory; the kernel reads around them.
        forget(directory)
        before = bytes_read()
        for _ in range(10):
            check(buffer.sample_batch(BATCH))
        # A page for the number, and one where a row does not begin with its page.
        assert bytes_read() - before <= 10 * BATCH * (ROW_BYTES + 2 * PAGE_BYTES)


def test_all_rows_are_read_some_after_the_others(directory):
    with open_buffer(directory) as buffer:
        check(buffer.sample_batch(BATCH))
        assert check(buffer.sample_all())["n"].tolist() == list(range(SIZE))


def test_rows_are_overwritten_without_being_read(directory):
    with open_buffer(directory) as buffer:
        buffer.add_batch(rows(SIZE, BATCH))
        forget(directory)
        before = bytes_read()
        for first in range(SIZE + BATCH, 2 * SIZE, BATCH * 8):
            buffer.add_batch(rows(first, BATCH * 8))
        assert bytes_read() - before < SIZE * ROW_BYTES // 10
        forget(directory)
        stored = check(buffer.sample_all())
        assert sorted(stored["n"].tolist()) == list(range(int(stored["n"].min()), int(stored["n"].min()) + SIZE))


@settings(deadline=None)  # The machine may be busy.
@given(slots=st.lists(st.integers(0, 5000), min_size=1, max_size=50), row_bytes=st.integers(1, 3 * PAGE_BYTES))
def test_runs_are_the_pages_of_the_rows(slots, row_bytes):
    pages = {page for slot in slots for page in range(slot * row_bytes // PAGE_BYTES, (slot * row_bytes + row_bytes - 1) // PAGE_BYTES + 1)}
    runs = list(page_runs(np.array(slots), row_bytes))
    found = [page for offset, size in runs for page in range(offset // PAGE_BYTES, (offset + size) // PAGE_BYTES)]
    assert found == sorted(pages)
    assert all(offset % PAGE_BYTES == size % PAGE_BYTES == 0 for offset, size in runs)
    assert all(offset + size < other for (offset, size), (other, _) in itertools.pairwise(runs))
