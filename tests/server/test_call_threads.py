"""The threads in which calls are served."""

from __future__ import annotations

import threading
import time

import pytest

from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.transport import call_threads
from tdreplay_server.transport.call_threads import CallThreads

WAIT = 20.0
STREAMS = 60


def threads_named(beginning: str) -> int:
    return sum(thread.name.startswith(beginning) for thread in threading.enumerate())


def eventually(holds, seconds: float = WAIT) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.fixture
def brief_idleness(monkeypatch):
    monkeypatch.setattr(call_threads, "IDLE_SECONDS", 0.3)


def test_work_is_done_by_as_many_threads_as_it_needs_and_not_by_more_than_there_may_be():
    threads, doing, may_end = CallThreads(3, "some"), threading.Semaphore(0), threading.Event()

    def work(number):
        doing.release()
        may_end.wait(WAIT)
        return number

    futures = [threads.submit(work, number) for number in range(5)]
    assert all(doing.acquire(timeout=WAIT) for _ in range(3))
    assert threads_named("some") == 3
    assert not doing.acquire(timeout=0.1)
    may_end.set()
    assert [future.result(WAIT) for future in futures] == list(range(5))
    threads.shutdown()
    assert eventually(lambda: not threads_named("some"))


def test_an_error_is_that_of_its_work_alone():
    threads = CallThreads(1, "erring")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(WAIT)
    assert threads.submit(lambda: 1).result(WAIT) == 1
    threads.shutdown()


def test_threads_that_are_not_needed_end_while_others_work(brief_idleness):
    threads, together = CallThreads(20, "brief"), threading.Barrier(10)
    futures = [threads.submit(together.wait, WAIT) for _ in range(10)]
    assert sorted(future.result(WAIT) for future in futures) == list(range(10))
    assert eventually(lambda: threads.submit(threads_named, "brief").result(WAIT) == 1)
    threads.shutdown()


def test_many_threads_give_and_take_work_at_the_edge_of_idleness(monkeypatch):
    """Work that comes at the moment at which a thread gives up waiting for it is done all the same."""
    monkeypatch.setattr(call_threads, "IDLE_SECONDS", 0.0005)
    threads = CallThreads(4, "edge")
    for number in range(2000):
        assert threads.submit(lambda number=number: number).result(WAIT) == number
        time.sleep(0.0005 if number % 2 else 0)
    threads.shutdown()


def test_the_threads_of_calls_come_back(brief_idleness):
    """A server that has served many streams at once has no thread more than before, a while after they ended; nor has one that stopped."""
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add({"a": 1.0})
        streams = [buffer.stream(2) for _ in range(STREAMS)]
        assert all(len(next(stream)) == 2 for stream in streams)
        assert threads_named("tdreplay-call_") >= STREAMS
        for stream in streams:
            stream.close()
        assert eventually(lambda: threads_named("tdreplay-call_") <= 5)
    assert eventually(lambda: not threads_named("tdreplay-call_"))
