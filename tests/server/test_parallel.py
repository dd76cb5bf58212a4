"""Copies by several threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tdreplay_server.storage.parallel import PART_BYTES, in_parts


@pytest.mark.parametrize(
    ("rows", "row_bytes"), [(1, 1), (1, 100 * PART_BYTES), (7, PART_BYTES), (1000, 10), (1000, PART_BYTES), (3, PART_BYTES // 2)]
)
def test_every_row_is_in_one_part(rows, row_bytes):
    done, lock = [], threading.Lock()

    def act(start: int, stop: int) -> None:
        with lock:
            done.extend(range(start, stop))

    in_parts(rows, row_bytes, act)
    assert sorted(done) == list(range(rows))


def test_an_error_in_a_part_is_raised_when_all_parts_are_done():
    def act(start: int, stop: int) -> None:
        raise ValueError(f"{start} {stop}")

    with pytest.raises(ValueError, match=r"^0 "):
        in_parts(100, PART_BYTES, act)


def test_a_forked_child_has_threads_of_its_own():
    program = """
import os, signal
from tdreplay_server.storage.parallel import PART_BYTES, in_parts
in_parts(100, PART_BYTES, lambda *_: None)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    in_parts(100, PART_BYTES, lambda *_: None)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
