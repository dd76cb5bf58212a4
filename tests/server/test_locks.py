"""The readers-writer lock."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from tdreplay_server.storage.locks import ReadWriteLock

WAIT = 10.0


def test_readers_run_at_the_same_time():
    lock, both = ReadWriteLock(), threading.Barrier(2)

    def read():
        with lock.read():
            both.wait(WAIT)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not both.broken
    assert not any(thread.is_alive() for thread in threads)


def test_a_writer_is_alone():
    lock, inside, most = ReadWriteLock(), [0, 0], [0]

    def enter(kind, guard):
        for _ in range(300):
            with guard():
                inside[kind] += 1
                most[0] = max(most[0], inside[1] * 100 + inside[0])
                assert inside[1] == 0 or inside == [0, 1]
                inside[kind] -= 1

    # The counters of readers are only ever wrong by a lost update between readers, so the readers here are one.
    threads = [threading.Thread(target=enter, args=args) for args in ((0, lock.read), (1, lock.write), (1, lock.write))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert most[0] == 100
    assert inside == [0, 0]


def started(*works):
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def test_readers_and_writers_that_wait_take_turns():
    """Readers that came while a writer waits go in together after it, and before the next writer."""
    lock, order, first_reads, may_end = ReadWriteLock(), [], threading.Event(), threading.Event()

    def first_reader():
        with lock.read():
            first_reads.set()
            may_end.wait(WAIT)

    def enter(name, guard):
        with guard():
            order.append(name)
            time.sleep(0.01)

    threads = started(first_reader)
    assert first_reads.wait(WAIT)
    for name in ("writer 1", "writer 2", "reader", "reader", "writer 3", "reader"):
        threads += started(partial(enter, name, lock.read if name == "reader" else lock.write))
        time.sleep(0.1)  # Until it waits.
    assert order == []
    may_end.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == ["writer 1", "reader", "reader", "reader", "writer 2", "writer 3"]


@pytest.mark.parametrize("kind", ["read", "write"])
def test_each_kind_gets_its_turn_beside_any_number_of_the_other(kind):
    lock, over, waits = ReadWriteLock(), threading.Event(), []

    def occupy():
        while not over.is_set():
            with lock.write() if kind == "read" else lock.read():
                time.sleep(0.001)

    threads = started(*[occupy] * 32)
    for _ in range(20):
        start = time.monotonic()
        with lock.read() if kind == "read" else lock.write():
            waits.append(time.monotonic() - start)
    over.set()
    for thread in threads:
        thread.join(WAIT)
    assert max(waits) < 1.0


@pytest.mark.parametrize(("holds", "waits"), [("read", "write"), ("write", "read"), ("write", "write")])
def test_who_is_interrupted_while_it_waits_holds_nobody_up(holds, waits):
    lock, held, may_end = ReadWriteLock(), threading.Event(), threading.Event()

    def hold():
        with getattr(lock, holds)():
            held.set()
            may_end.wait(WAIT)

    def interrupt(*_):
        raise KeyboardInterrupt

    threads = started(hold)
    assert held.wait(WAIT)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt), getattr(lock, waits)():
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if holds == "read":
        assert enters(lock.read)
    may_end.set()
    threads[0].join(WAIT)
    assert all(enters(guard) for guard in (lock.read, lock.write, lock.read))


def enters(guard):
    def enter():
        with guard():
            inside.append(True)

    inside = []
    started(enter)[0].join(WAIT)
    return inside == [True]


def test_an_error_inside_gives_the_lock_back():
    lock = ReadWriteLock()
    for guard in (lock.read, lock.write):
        with suppress(KeyError), guard():
            raise KeyError
    with lock.write():
        pass
