"""How writers end: closed, left by an error, dropped, outlived by their buffer or their process. What was appended is stored, or counted."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from children import server_process
from conftest import freeze, numbers, rows, thaw
from tdreplay.errors import ClosedError, DeadlineError, ReplayError, ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture
def buffer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=20_000, timeout=10) as made:
        yield made


@pytest.fixture(scope="module")
def process():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=20_000)) as server:
        yield server


def row(number: int) -> dict[str, object]:
    obs = np.full(3, number, np.float32)
    return {"obs": obs, "action": number, "done": number % 2 == 0, "next": {"obs": obs + 1}}


def appended(writer, n: int, start: int = 0):
    for number in range(start, start + n):
        writer.append(row(number))
    return writer


def wait_until(done, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith("tdreplay-call")}


def test_close_stores_what_was_appended(buffer):
    writer = appended(buffer.writer(flush_seconds=1000), 4001)
    writer.extend(rows(100, 4001))
    writer.close()
    assert numbers(buffer.sample_all()) == list(range(4101))
    writer.close()


def test_an_error_inside_the_with_block_is_raised_and_the_rows_before_it_are_stored(buffer):
    with pytest.raises(ZeroDivisionError), buffer.writer(flush_seconds=1000) as writer:  # noqa: PT012 - the block is what is tested.
        appended(writer, 1000)
        _ = 1 / 0
    assert numbers(buffer.sample_all()) == list(range(1000))


def test_abandon_ends_at_once_and_counts_what_it_drops(buffer, caplog):
    writer = appended(buffer.writer(flush_seconds=1000), 70)
    writer.flush()
    appended(writer, 5, 70)
    with caplog.at_level(logging.WARNING, "tdreplay"):
        writer.abandon()
    assert [record.message.count("dropped 5 rows") for record in caplog.records] == [1]
    with pytest.raises(ClosedError):
        writer.append(row(0))
    writer.close()
    assert buffer.size == 70


def test_a_writer_that_is_dropped_stores_its_rows_and_leaves_no_thread(buffer):
    buffer.add(rows(1, 999)[0])
    before = client_threads()
    for number in range(20):
        appended(buffer.writer(flush_seconds=1000), 10, 10 * number)
    wait_until(lambda: len(buffer) == 201)
    wait_until(lambda: client_threads() <= before)
    assert sorted(numbers(buffer.sample_all())) == [*range(200), 999]


def test_a_writer_that_was_never_used_leaves_no_thread(buffer):
    before = client_threads()
    writers = [buffer.writer() for _ in range(10)]
    assert client_threads() <= before
    writers[0].flush()
    writers[0].close()
    del writers
    assert client_threads() <= before


def test_a_notebook_that_leaves_writers_and_streams_behind_is_not_refused():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=1000, max_streams=8)) as server:
        with RemoteReplayBuffer(server.address, timeout=10) as buffer:
            buffer.add_batch(rows(10))
            for number in range(40):
                writer = buffer.writer()
                writer.append(row(number))
                batches = buffer.stream(4)
                next(batches)
            writer.flush()
            wait_until(lambda: buffer.size == 50)
            del batches


def test_closing_the_buffer_stores_what_its_writers_hold(address, table):
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=10)
    writers = [appended(buffer.writer(flush_seconds=1000), 10, 10 * number) for number in range(3)]
    buffer.close()
    for writer in writers:
        with pytest.raises(ClosedError):
            writer.append(row(0))
        writer.close()
    with RemoteReplayBuffer(address, table=table) as again:
        assert sorted(numbers(again.sample_all())) == list(range(30))


SCRIPT = """
import sys
from tdreplay_client import RemoteReplayBuffer
buffer = RemoteReplayBuffer(sys.argv[1], table=sys.argv[2], buffer_size=2000, timeout=10)
writer = buffer.writer(flush_seconds=1000)
for number in range(1000):
    writer.append({"action": number})
if sys.argv[3] == "raises":
    raise ZeroDivisionError
"""


def run_script(address, table, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, address, table, how]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("how", ["ends", "raises"])
def test_a_script_that_ends_without_closing_stores_its_rows(address, table, how):
    done = run_script(address, table, how)
    assert done.returncode == (0 if how == "ends" else 1), done.stderr
    assert "dropped" not in done.stderr
    with RemoteReplayBuffer(address, table=table) as buffer:
        assert buffer.sample_all()["action"].tolist() == list(range(1000))


# -- a server that does not answer ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(process, table, caplog):
    """A writer with 70 rows that are stored, and 5 that cannot be."""
    with RemoteReplayBuffer(process.address, table=table, buffer_size=1000, timeout=1) as buffer:
        writer = appended(buffer.writer(flush_seconds=1000), 70)
        writer.flush()
        freeze(process.pid)
        appended(writer, 5, 70)
        with caplog.at_level(logging.WARNING, "tdreplay"):
            try:
                yield buffer, writer
            finally:
                thaw(process.pid)
                writer.abandon()


def counted(caplog, count: int = 5) -> bool:
    return [f" {count} rows" in record.message for record in caplog.records if "the writer of" in record.message] == [True]


def test_close_is_bounded_and_hands_back_what_it_could_not_store(frozen, caplog):
    _, writer = frozen
    start = time.monotonic()
    with pytest.raises(DeadlineError) as raised:
        writer.close(timeout=np.float32(0.5))
    assert time.monotonic() - start < 5
    assert numbers(raised.value.rows) == list(range(70, 75))
    assert counted(caplog)
    writer.close()


def test_an_error_inside_the_with_block_is_not_masked_by_the_writers(frozen, caplog):
    _, writer = frozen
    with pytest.raises(ZeroDivisionError) as raised, writer:
        _ = 1 / 0
    assert counted(caplog)
    if sys.version_info >= (3, 11):
        assert "DeadlineError" in raised.value.__notes__[0]


def test_what_a_dropped_writer_could_not_store_is_counted(process, table, caplog):
    with RemoteReplayBuffer(process.address, table=table, buffer_size=1000, timeout=1) as buffer:
        before = client_threads()
        writer = appended(buffer.writer(flush_seconds=1000), 5)
        freeze(process.pid)
        try:
            del writer
            gc.collect()
            wait_until(lambda: counted(caplog))
            wait_until(lambda: client_threads() <= before)
        finally:
            thaw(process.pid)


def test_closing_the_buffer_counts_what_could_not_be_stored_and_the_writer_hands_it_back(frozen, caplog):
    buffer, writer = frozen
    start = time.monotonic()
    buffer.close()
    assert time.monotonic() - start < 5
    assert counted(caplog)
    with pytest.raises(ReplayError) as raised:
        writer.append(row(75))
    assert numbers(raised.value.rows) == list(range(70, 76))


def test_a_killed_server_is_counted_when_the_writer_is_closed(table, caplog):
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
        with RemoteReplayBuffer(server.address, timeout=0.5) as buffer:
            writer = appended(buffer.writer(flush_seconds=1000), 5)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(ServerUnavailableError) as raised:
                writer.close()
            assert numbers(raised.value.rows) == list(range(5))
            assert counted(caplog)


# -- from elsewhere -------------------------------------------------------------------------------------------------------------------------------


def test_a_writer_that_is_closed_while_another_thread_appends_loses_nothing_in_silence(buffer):
    writer, taken = buffer.writer(flush_rows=8), []
    started = threading.Event()

    def append() -> None:
        with pytest.raises(ClosedError):  # noqa: PT012 - one of many calls is the one that raises.
            for number in range(10**9):
                writer.append(row(number))
                taken.append(number)
                started.set()

    thread = threading.Thread(target=append)
    thread.start()
    assert started.wait(10)
    time.sleep(0.1)
    writer.close()
    thread.join(10)
    assert not thread.is_alive()
    assert numbers(buffer.sample_all())[: len(taken)] == taken[-20_000:]


def test_threads_that_share_a_writer_store_all_their_rows(buffer):
    writer = buffer.writer(flush_rows=8)

    def write(start: int) -> None:
        appended(writer, 300, start)
        writer.extend(rows(4500, start + 300))
        writer.flush()

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 5000, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    writer.close()
    stored = numbers(buffer.sample_all())
    for start in (0, 5000, 10_000):
        assert [number for number in stored if start <= number < start + 4800] == list(range(start, start + 4800))


RUNNING = {
    "add": lambda b: b.add(rows(1)[0]),
    "add_batch": lambda b: b.add_batch(rows(5)),
    "sample_batch": lambda b: b.sample_batch(4),
    "append": lambda b: b.writer().append(row(0)),
}


@pytest.mark.parametrize("call", RUNNING)
def test_closing_the_buffer_ends_running_calls_with_a_closed_error(address, table, call):
    for _ in range(10):
        buffer, failed = RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=10), []
        buffer.add_batch(rows(5))
        started = threading.Event()
        threads = [threading.Thread(target=call_until_it_fails, args=(RUNNING[call], buffer, started, failed)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert started.wait(10)
        buffer.close()
        for thread in threads:
            thread.join(10)
        assert [type(error) for error in failed] == [ClosedError] * 2, failed


def call_until_it_fails(call, buffer, started: threading.Event, failed: list[BaseException]) -> None:
    try:
        while True:
            call(buffer)
            started.set()
    except BaseException as error:  # noqa: BLE001 - its class is what is tested.
        failed.append(error)
