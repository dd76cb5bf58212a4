"""A server that is missing, frozen, killed or closed is a typed error that names it, within the time that the client was given."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from children import Server, server_process
from conftest import freeze, rows, thaw
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import ClosedError, DeadlineError, InvalidArgumentError, ReplayError, ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer, Writer
from tdreplay_server import ServerConfig

TIMEOUT = 1.0
CALLS = {
    "add": lambda b: b.add(rows(1)[0]),
    "add_batch": lambda b: b.add_batch(rows(3)),
    "add_batch of several blocks": lambda b: b.add_batch(rows(200_000)),
    "sample_batch": lambda b: b.sample_batch(4),
    "sample_by_index": lambda b: b.sample_by_index([0]),
    "sample_all": lambda b: b.sample_all(),
    "create_epoch_iterator": lambda b: b.create_epoch_iterator(4),
    "size": lambda b: b.size,
    "reset": lambda b: b.reset(),
    "save": lambda b: b.save("/nowhere/at/all"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as process:
        yield process


@pytest.fixture
def frozen(server: Server) -> Iterator[RemoteReplayBuffer]:
    """A buffer whose server was stopped in the middle of things."""
    with RemoteReplayBuffer(server.address, timeout=TIMEOUT) as buffer:
        buffer.add_batch(rows(50))
        freeze(server.pid)
        try:
            yield buffer
        finally:
            thaw(server.pid)


def assert_raises_in_time(buffer: BaseReplayBuffer, call, error: type[ReplayError], word: str, seconds: float = TIMEOUT + 2) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=word):
        call(buffer)
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("call", CALLS)
def test_a_frozen_server_is_a_deadline_error_that_names_it(frozen, call):
    assert_raises_in_time(frozen, CALLS[call], DeadlineError, frozen.address)


def test_an_epoch_whose_server_freezes_is_a_deadline_error(server):
    with RemoteReplayBuffer(server.address, timeout=TIMEOUT) as buffer:
        buffer.add_batch(rows(500))
        batches = buffer.create_epoch_iterator(1, 1000)
        next(batches)
        freeze(server.pid)
        try:
            assert_raises_in_time(buffer, lambda _: list(batches), DeadlineError, server.address)
        finally:
            thaw(server.pid)


def test_a_thawed_server_serves_the_same_client_again(server):
    with RemoteReplayBuffer(server.address, timeout=TIMEOUT) as buffer:
        freeze(server.pid)
        with pytest.raises(DeadlineError):
            buffer.state()
        thaw(server.pid)
        buffer.add_batch(rows(3))
        assert len(buffer.sample_batch(5)) == 5


def test_a_reader_that_pauses_longer_than_the_timeout_goes_on(server):
    with RemoteReplayBuffer(server.address, timeout=0.3) as buffer:
        buffer.add_batch(rows(20))
        batches = buffer.create_epoch_iterator(1)
        next(batches)
        threading.Event().wait(1.0)  # The pause is what is tested: the deadline is the server's, not the reader's.
        assert len(list(batches)) == buffer.size - 1


@contextmanager
def standing_still(after: float, seconds: float) -> Iterator[None]:
    """Once, after so long, no thread of this process runs for so many seconds: a full garbage collection of a large heap is like that."""
    hold = ctypes.PyDLL(None).usleep  # Of a PyDLL: the interpreter is not let go.
    thread = threading.Timer(after, hold, [round(seconds * 1e6)])
    thread.start()
    try:
        yield
    finally:
        thread.join()


def append(writer: Writer) -> None:
    writer.append(rows(1)[0])
    writer.flush()


REPEATED: dict[str, Callable[[RemoteReplayBuffer], Callable[[], object]]] = {
    "add": lambda b: lambda: b.add(rows(1)[0]),
    "add_batch": lambda b: lambda: b.add_batch(rows(3)),
    "sample_batch": lambda b: lambda: b.sample_batch(4),
    "sample_by_index": lambda b: lambda: b.sample_by_index([0]),
    "writer": lambda b: functools.partial(append, b.writer()),
    "stream": lambda b: functools.partial(next, b.stream(1, prefetch=1)),
    "epoch": lambda b: functools.partial(next, b.create_epoch_iterator(1, 10**6)),
}


@pytest.mark.parametrize("after", [0.01, 0.02, 0.03])
@pytest.mark.parametrize("call", REPEATED)
def test_a_client_that_stood_still_does_not_blame_the_server(server, call, after):
    with RemoteReplayBuffer(server.address, timeout=0.3) as buffer:
        buffer.add_batch(rows(3))
        repeated = REPEATED[call](buffer)
        with standing_still(after, 0.5):
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                repeated()


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_buffer_says_so(server, call):
    buffer = RemoteReplayBuffer(server.address, timeout=TIMEOUT)
    buffer.close()
    buffer.close()
    assert_raises_in_time(buffer, CALLS[call], ClosedError, "closed")


def test_closing_ends_an_epoch_that_another_thread_reads(server):
    buffer = RemoteReplayBuffer(server.address, timeout=30)
    buffer.add_batch(rows(100))
    batches, failed = buffer.create_epoch_iterator(1, 10**9), []
    started = threading.Event()

    def read() -> None:
        try:
            for _ in batches:
                started.set()
        except ReplayError as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(10)
    buffer.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in failed] == [ClosedError]


def test_a_missing_server_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert_raises_in_time(None, lambda _: RemoteReplayBuffer(address, timeout=TIMEOUT), ServerUnavailableError, address)
    assert_raises_in_time(None, lambda _: RemoteReplayBuffer("unix:/nowhere.sock", timeout=TIMEOUT), ServerUnavailableError, "nowhere.sock")


def test_a_socket_that_never_answers_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert_raises_in_time(
            None, lambda _: RemoteReplayBuffer(address, timeout=TIMEOUT, buffer_size=3), (DeadlineError, ServerUnavailableError), address
        )


@pytest.mark.parametrize("call", CALLS)
def test_a_killed_server_is_an_error_that_names_it(call):
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
        with RemoteReplayBuffer(server.address, timeout=2) as buffer:
            buffer.add_batch(rows(500))
            batches = buffer.create_epoch_iterator(1, 1000)
            os.kill(server.pid, signal.SIGKILL)
            assert_raises_in_time(buffer, lambda _: list(batches), ServerUnavailableError, server.address)
            assert_raises_in_time(buffer, CALLS[call], ServerUnavailableError, server.address, 2 + 2)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_above_zero(timeout):
    with pytest.raises(InvalidArgumentError, match="timeout"):
        RemoteReplayBuffer("127.0.0.1:1", timeout=timeout)


def test_one_thread_watches_over_the_deadlines_of_all_buffers_and_ends_with_them(server):
    def watching() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "tdreplay-deadlines"]

    buffers = [RemoteReplayBuffer(server.address, timeout=TIMEOUT) for _ in range(5)]
    for buffer in buffers:
        buffer.add(rows(1)[0])
    assert len(watching()) == 1
    for buffer in buffers:
        buffer.close()
    for thread in watching():
        thread.join(10)
    assert not watching()
