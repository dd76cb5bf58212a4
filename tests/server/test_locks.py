"""The readers-writer lock."""

from __future__ import annotations

import threading
from contextlib import suppress

from tdreplay_server.locks import ReadWriteLock

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


def test_a_waiting_writer_is_not_starved_by_new_readers():
    lock, order = ReadWriteLock(), []
    reading, release = threading.Event(), threading.Event()

    def first_reader():
        with lock.read():
            reading.set()
            release.wait(WAIT)

    def writer():
        with lock.write():
            order.append("writer")

    def late_reader():
        with lock.read():
            order.append("reader")

    threads = [threading.Thread(target=first_reader), threading.Thread(target=writer)]
    threads[0].start()
    assert reading.wait(WAIT)
    threads[1].start()
    while not lock._writers_waiting:
        pass
    threads.append(threading.Thread(target=late_reader))
    threads[2].start()
    release.set()
    for thread in threads:
        thread.join(WAIT)
    assert order == ["writer", "reader"]


def test_an_error_inside_gives_the_lock_back():
    lock = ReadWriteLock()
    for guard in (lock.read, lock.write):
        with suppress(KeyError), guard():
            raise KeyError
    with lock.write():
        pass
