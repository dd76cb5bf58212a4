"""The check of a journal's bytes, against a real SQLite: what a kill leaves passes, and a flipped byte never does."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import pytest

from children import child_of
from tdreplay.errors import CorruptDataError
from tdreplay_server.durability.journal_check import check_journal, write_checksums

KILLS = 64
KEPT = 40
"""Rows that the killed process keeps: it deletes older ones, so that pages become free and are used again."""
PAGE, HEADER = 1024, 32
FRAME = 24 + PAGE
FILES = ("", "-wal", ".checksums")


class Database:
    """Rows of numbered blobs, over one connection, as the journal has it."""

    def __init__(self, path: Path, page_size: int = PAGE) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.file = os.open(path, os.O_RDONLY)
        for pragma in (f"page_size={page_size}", "locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0", "synchronous=OFF"):
            self.connection.execute(f"PRAGMA {pragma}")

    def insert(self, number: int, size: int = 100) -> None:
        """One commit."""
        self.connection.execute("INSERT INTO blobs VALUES (?, ?)", (number, bytes([number % 256]) * size))

    def compact(self, between: Callable[[], None] = lambda: None) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        between()
        write_checksums(self.path, file=self.file)
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self.connection.close()
        os.close(self.file)


def create(path: Path, page_size: int = PAGE, rows: int = 4) -> Database:
    database = Database(path, page_size)
    database.connection.execute("CREATE TABLE blobs (number INTEGER PRIMARY KEY, bytes BLOB)")
    for number in range(1, rows + 1):
        database.insert(number)
    database.compact()
    return database


def snapshot(path: Path, target: Path) -> Path:
    """A copy of the files as they are: what a SIGKILL would leave now."""
    target.mkdir(exist_ok=True)
    for suffix in FILES:
        beside(target / path.name, suffix).unlink(missing_ok=True)
        if beside(path, suffix).exists():
            shutil.copy(beside(path, suffix), target)
    return target / path.name


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def numbers(path: Path, scratch: Path) -> list[int]:
    """What SQLite reads from a copy of the files: the rows' numbers. Each must be whole."""
    with closing(sqlite3.connect(snapshot(path, scratch))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT number, bytes FROM blobs ORDER BY number").fetchall()
    assert all(set(blob) <= {number % 256} for number, blob in rows)
    return [number for number, _ in rows]


def commit_until_killed(path: str) -> None:
    """Opens the database, which may have been killed, commits and compacts, and notes each commit in a file that outlives it."""
    draw = random.Random(time.time_ns())
    reported = os.open(f"{path}.reported", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("writes", flush=True)
    check_journal(Path(path))
    database = Database(Path(path))
    database.compact()
    (last,) = database.connection.execute("SELECT max(number) FROM blobs").fetchone()
    for number in range(last + 1, sys.maxsize):
        database.connection.execute("BEGIN")
        database.insert(number, draw.choice((10, 300, 9000)))
        database.connection.execute("DELETE FROM blobs WHERE number <= ?", (number - KEPT,))
        database.connection.execute("COMMIT")
        os.write(reported, f"{number}\n".encode())
        if draw.random() < 0.15:
            database.compact()


@pytest.fixture(params=[512, 1024, 4096, 65536])
def killed(tmp_path, request) -> Path:
    """Of a database with commits in its WAL, one of which extends it."""
    with closing(create(tmp_path / "journal", request.param)) as database:
        for number in (11, 12, 13):
            database.insert(number, request.param)
        return snapshot(database.path, tmp_path / "killed")


def test_a_clean_close_passes_and_leaves_no_log(tmp_path):
    create(tmp_path / "journal").close()
    check_journal(tmp_path / "journal")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "journal.checksums"]


def test_each_state_that_a_kill_leaves_passes_and_keeps_what_was_reported(tmp_path):
    path, reported, seen, wait = tmp_path / "journal", tmp_path / "journal.reported", Counter(), random.Random(1)
    create(path).close()
    for _ in range(KILLS):
        with child_of(commit_until_killed, str(path)) as child:
            wait_for_commits(reported, wait.randrange(16))
            time.sleep(wait.uniform(0, 0.003))
            child.kill()
        check_journal(path)
        seen.update(kinds(path, tmp_path / "bare"))
        last = last_reported(reported)
        found = numbers(path, tmp_path / "copy")
        assert found[-1] in (last, last + 1)
        if last > KEPT + 4:
            assert found == list(range(found[-1] - KEPT + 1, found[-1] + 1))
    print(seen, f"{found[-1]} commits")
    assert seen["log"] > KILLS / 4
    assert found[-1] > 5 * KILLS


def wait_for_commits(reported: Path, count: int) -> None:
    """Waits until so many more were reported."""
    last, deadline = last_reported(reported), time.monotonic() + 60
    while last_reported(reported) < last + count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def last_reported(reported: Path) -> int:
    """The number of the last row that was committed, as the child reported it."""
    numbers = reported.read_text().split()
    return int(numbers[-1]) if numbers else 4


def kinds(path: Path, scratch: Path) -> dict[str, bool]:
    """What there is to see in a state."""
    log = beside(path, "-wal").read_bytes() if beside(path, "-wal").exists() else b""
    frames, rest = divmod(max(len(log) - HEADER, 0), FRAME)
    last = HEADER + (frames - 1) * FRAME
    bare = snapshot(path, scratch)
    beside(bare, "-wal").unlink(missing_ok=True)
    return {
        "log": frames > 0,
        "torn frame": rest > 0,
        "no commit at the end": frames > 0 and log[last + 4 : last + 8] == bytes(4),
        "database newer than its checksums": not passes(bare),
    }


def passes(path: Path) -> bool:
    try:
        check_journal(path)
    except CorruptDataError:
        return False
    return True


def test_each_state_inside_a_checkpoint_passes(tmp_path):
    with closing(create(tmp_path / "journal")) as database:
        for number in range(20, 30):
            database.insert(number, 700)
        database.connection.execute("UPDATE blobs SET bytes = bytes WHERE number < 3")
        before, states = database.path.read_bytes(), []
        database.compact(between=lambda: states.append(snapshot(database.path, tmp_path / "killed")))
    (state,) = states
    after = state.read_bytes()
    inside = [after[:cut] + before[cut:] for cut in [*range(0, len(before), PAGE), *range(len(before), len(after), 101)]]
    assert before[:PAGE] != after[:PAGE]
    assert len(after) > len(before) + 5 * PAGE
    for data in inside:
        state.write_bytes(data)
        check_journal(state)
        assert numbers(state, tmp_path / "copy") == [1, 2, 3, 4, *range(20, 30)]
    beside(state, "-wal").unlink()
    for data in inside[1:]:
        state.write_bytes(data)
        with pytest.raises(CorruptDataError, match="page"):
            check_journal(state)


def test_a_log_that_ends_anywhere_passes(killed):
    log = beside(killed, "-wal").read_bytes()
    for size in {*range(0, len(log), max(1, len(log) // 1000)), *range(100)}:
        beside(killed, "-wal").write_bytes(log[:size])
        check_journal(killed)
    beside(killed, "-wal").unlink()
    check_journal(killed)


def flip(path: Path, place: int, draw: random.Random) -> None:
    """Checks that one wrong byte is reported, and puts it right again."""
    file = os.open(path, os.O_RDWR)
    byte = os.pread(file, 1, place)
    os.pwrite(file, bytes([byte[0] ^ draw.randrange(1, 256)]), place)
    try:
        with pytest.raises(CorruptDataError, match=path.name):
            check_journal(path.with_name("journal"))
    finally:
        os.pwrite(file, byte, place)
        os.close(file)


def flip_everywhere(database: Path, most: int = sys.maxsize) -> None:
    draw = random.Random(0)
    check_journal(database)
    for path in (beside(database, suffix) for suffix in FILES):
        size = path.stat().st_size if path.exists() else 0
        for place in draw.sample(range(size), min(size, most)):
            flip(path, place, draw)
    check_journal(database)


def test_each_flipped_byte_is_reported_after_a_clean_close(tmp_path):
    create(tmp_path / "journal", rows=100).close()
    assert (tmp_path / "journal").stat().st_size > 10 * PAGE
    flip_everywhere(tmp_path / "journal")


def test_each_flipped_byte_is_reported_after_a_kill(tmp_path):
    with closing(create(tmp_path / "journal", rows=50)) as database:
        for number in (51, 52, 53):
            database.insert(number, 3 * PAGE)
        state = snapshot(database.path, tmp_path / "killed")
    assert beside(state, "-wal").stat().st_size > 10 * FRAME
    flip_everywhere(state)


def test_a_flipped_byte_is_reported_whatever_the_page_size(killed):
    flip_everywhere(killed, 150)


def test_frames_that_were_not_committed_are_checked_and_vouch_for_no_page(tmp_path):
    with closing(create(tmp_path / "journal")) as database:
        database.insert(9, 5 * PAGE)
        state = snapshot(database.path, tmp_path / "killed")
    log = beside(state, "-wal")
    os.truncate(log, log.stat().st_size - FRAME + 500)  # The commit frame is torn.
    check_journal(state)
    assert numbers(state, tmp_path / "copy") == [1, 2, 3, 4]
    for place in range(HEADER, log.stat().st_size - 500, 29):
        flip(log, place, random.Random(place))
    number = struct.unpack_from(">I", log.read_bytes(), HEADER)[0]
    with state.open("r+b") as file:
        file.seek((number - 1) * PAGE)
        file.write(log.read_bytes()[HEADER + 24 : HEADER + FRAME])
    with pytest.raises(CorruptDataError, match=f"page {number}"):
        check_journal(state)


@pytest.mark.parametrize("suffix", ["", ".checksums"])
@pytest.mark.parametrize("size", [None, 0, 1, 40, PAGE, 2 * PAGE - 1])
def test_a_file_that_is_missing_or_too_short_is_reported(tmp_path, suffix, size):
    create(tmp_path / "journal").close()
    path = beside(tmp_path / "journal", suffix)
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[: min(size, len(data) - 1)])
    with pytest.raises(CorruptDataError, match=path.name):
        check_journal(tmp_path / "journal")


@pytest.mark.parametrize("more", [b"\0", bytes(PAGE), bytes(PAGE + 1)])
def test_a_database_that_is_too_long_is_reported(tmp_path, more):
    create(tmp_path / "journal").close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(more)
    with pytest.raises(CorruptDataError, match="page 3"):
        check_journal(tmp_path / "journal")


def test_a_database_that_is_older_than_its_log_is_reported(tmp_path):
    with closing(create(tmp_path / "journal")) as database:
        old = snapshot(database.path, tmp_path / "old")
        database.insert(9, 5 * PAGE)
        database.compact()
        database.insert(10, 3 * PAGE)
        shutil.copy(beside(database.path, "-wal"), old.parent)
    with pytest.raises(CorruptDataError, match=r"page 3 of \d+ is missing"):
        check_journal(old)


def test_checksums_of_what_is_no_database_are_refused(tmp_path):
    for data in (b"", bytes(PAGE), bytes(16) + b"\x04\0" + bytes(PAGE)):
        (tmp_path / "journal").write_bytes(data)
        with pytest.raises(CorruptDataError, match="is not a SQLite database"):
            write_checksums(tmp_path / "journal", durable=True)


def checksum(data: bytes, order: str, s0: int, s1: int) -> tuple[int, int]:
    """SQLite's walChecksumBytes, word by word."""
    for one, other in struct.iter_unpack(f"{order}II", data):
        s0 = (s0 + one + s1) % (1 << 32)
        s1 = (s1 + other + s0) % (1 << 32)
    return s0, s1


def rewritten(log: bytes, order: str) -> bytes:
    """A WAL with its checksums made anew, over words of that order."""
    page = struct.unpack_from(">I", log, 8)[0]
    head = struct.pack(">I", 0x377F0682 + (order == ">")) + log[4:24]
    sums = checksum(head, order, 0, 0)
    parts = [head, struct.pack(">II", *sums)]
    for start, end in pairwise(range(HEADER, len(log) + 1, 24 + page)):
        sums = checksum(log[start : start + 8] + log[start + 24 : end], order, *sums)
        parts += [log[start : start + 16], struct.pack(">II", *sums), log[start + 24 : end]]
    return b"".join(parts)


def test_the_checksums_are_sqlites_in_both_byte_orders(killed, tmp_path):
    log = beside(killed, "-wal").read_bytes()
    assert rewritten(log, "<") == log
    beside(killed, "-wal").write_bytes(rewritten(log, ">"))
    check_journal(killed)
    assert numbers(killed, tmp_path / "copy") == [1, 2, 3, 4, 11, 12, 13]
    flip_everywhere(killed, 20)


def test_frames_of_a_killed_commit_stay_behind_later_ones_unless_the_log_is_emptied_first(tmp_path):
    with closing(create(tmp_path / "journal")) as database:
        database.insert(9)
        database.insert(10, 20 * PAGE)
        state = snapshot(database.path, tmp_path / "killed")
    os.truncate(beside(state, "-wal"), beside(state, "-wal").stat().st_size - FRAME)
    check_journal(state)
    for compacted in (False, True):
        again = snapshot(state, tmp_path / f"compacted-{compacted}")
        with closing(Database(again)) as database:
            if compacted:
                database.compact()
            database.insert(11)
            left = snapshot(again, tmp_path / "left")
        assert numbers(left, tmp_path / "copy") == [1, 2, 3, 4, 9, 11]
        if compacted:
            check_journal(left)
        else:
            with pytest.raises(CorruptDataError, match=r"frame \d+ of 2\d"):
                check_journal(left)


def test_a_commit_between_the_steps_of_a_compaction_is_not_vouched_for(tmp_path):
    """SQLite begins the log anew once all of it is copied: the journal must stop where the second step fails."""
    with closing(create(tmp_path / "journal")) as database:
        for number in (9, 10):
            database.insert(number)
        database.connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        check_journal(snapshot(database.path, tmp_path / "killed"))
        database.insert(11)
        with pytest.raises(CorruptDataError, match="frame 2"):
            check_journal(snapshot(database.path, tmp_path / "killed"))


@pytest.mark.parametrize("own", [True, False])
def test_only_a_descriptor_that_stays_open_keeps_other_processes_out(tmp_path, own):
    program = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT count(*) FROM blobs').fetchone())"
    with closing(create(tmp_path / "journal")) as database:
        write_checksums(database.path, file=database.file if own else None)
        other = subprocess.run([sys.executable, "-c", program, database.path], capture_output=True, text=True, check=False)
    assert ("database is locked" in other.stderr) == own


def test_checksums_are_replaced_whole(tmp_path):
    create(tmp_path / "journal").close()
    beside(tmp_path / "journal", ".checksums.new").write_bytes(b"half of it")
    write_checksums(tmp_path / "journal", durable=True)
    check_journal(tmp_path / "journal")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "journal.checksums"]


def cpu_seconds(work) -> float:
    """Processor seconds of this process that the fastest of three goes takes: others on the machine count as little as can be."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_a_log_of_8000_frames_is_checked_in_some_times_the_time_that_hashes_take(tmp_path):
    with closing(create(tmp_path / "journal")) as database:
        for number in range(100, 100 + 4000):
            database.insert(number, PAGE)
        state = snapshot(database.path, tmp_path / "killed")
    frames = (beside(state, "-wal").stat().st_size - HEADER) // FRAME
    took = cpu_seconds(lambda: check_journal(state))
    log = beside(state, "-wal").read_bytes()
    hashed = cpu_seconds(lambda: [blake2b(log[start : start + FRAME]).digest() for start in range(HEADER, len(log), FRAME)])
    print(f"{frames} frames: {took * 1000:.0f} ms; to hash each takes {hashed * 1000:.0f} ms")
    assert frames >= 8000
    assert took < 10 * hashed
