"""Calls that wait for a rate limiter: in order, up to their deadlines, and without a trace when they are gone."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest
import torch
from limited_table import LimitedTable, started

from paused_gc import paused_gc
from tdreplay.errors import CancelledError, ClosedError, RateLimitedError
from tdreplay.rate_limiters import MinSize, Queue, SamplesPerInsert
from tdreplay_server import ReplayBuffer
from tdreplay_server.tables.limiters import AT_ONCE, Wait

LONG = 30.0


def soon(seconds=LONG, **kwargs):
    return Wait(time.monotonic() + seconds, **kwargs)


def until_waiting(table, inserts=0, samples=0):
    deadline = time.monotonic() + 10
    while [state.waiting for state in table.limiter.waits()] != [inserts, samples]:
        assert time.monotonic() < deadline, table.limiter.waits()
        time.sleep(0.001)


def test_a_batch_comes_when_its_rows_do():
    table = LimitedTable(MinSize(10))
    with started(lambda: table.sample(4, wait=soon())):
        until_waiting(table, samples=1)
        table.insert(9)
        until_waiting(table, samples=1)
        table.insert(1)
    assert len(table.reserved) == 1


def test_an_insert_comes_when_a_batch_was_taken_and_not_before():
    table = LimitedTable(Queue(10))
    table.insert(10)
    with started(lambda: table.insert(5, soon())):
        until_waiting(table, inserts=1)
        table.sample(5)
        until_waiting(table, inserts=1)
        table.take()
    assert table.ring.insert_count == 15


def test_who_waits_longest_goes_first_and_nobody_overtakes():
    table, order = LimitedTable(Queue(100)), []
    rows = [30, 1, 20, 1, 1]

    def sample(number):
        table.sample(rows[number], wait=soon())
        order.append(number)

    threads = []
    for number in range(len(rows)):
        threads.append(threading.Thread(target=sample, args=(number,)))
        threads[-1].start()
        until_waiting(table, samples=number + 1)
    table.insert(29)
    with pytest.raises(RateLimitedError, match="a batch of 1 rows comes after batches that wait longer"):
        table.sample(1)
    assert not order
    for more, served in ((1, [0]), (1, [0, 1]), (19, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2, 3, 4])):
        table.insert(more)
        until_waiting(table, samples=len(rows) - len(served))
        for _ in range(1000):
            if len(order) < len(served):
                time.sleep(0.001)
        assert sorted(order) == served
    for thread in threads:
        thread.join(LONG)


def test_nobody_waits_past_its_deadline():
    table = LimitedTable(MinSize(1000))
    table.insert(640)
    begin = time.monotonic()
    with pytest.raises(RateLimitedError, match="sampling needs 1000 rows, 640 are there") as raised:
        table.sample(1, wait=soon(0.3))
    took = time.monotonic() - begin
    assert 0.3 <= took < 1
    assert isinstance(raised.value, TimeoutError)
    inserts, samples = table.limiter.waits()
    assert (inserts.seconds, samples.waiting) == (0, 0)
    assert 0.2 < samples.seconds <= took  # The deadline was set before the wait began.


def test_one_whose_deadline_comes_lets_those_behind_it_go():
    table = LimitedTable(Queue(100))
    table.insert(5)

    def large():
        with pytest.raises(RateLimitedError, match="waits until 50 rows were inserted, 5 were"):
            table.sample(50, wait=soon(0.5))

    with started(large):
        until_waiting(table, samples=1)
        begin = time.monotonic()
        table.sample(5, wait=soon())
    assert 0.1 < time.monotonic() - begin < 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_whose_client_is_gone_leaves_within_half_a_second(place):
    table, wanted, left = LimitedTable(MinSize(10)), [True, True, True], {}

    def sample(number):
        try:
            table.sample(1, wait=soon(wanted=lambda: wanted[number]))
        except CancelledError:
            left[number] = time.monotonic()

    with started(*(partial(sample, number) for number in range(3))):
        until_waiting(table, samples=3)
        time.sleep(0.3)
        wanted[place], begin = False, time.monotonic()
        until_waiting(table, samples=2)
        assert time.monotonic() - begin < 0.6
        table.insert(10)
    assert list(left) == [place]
    assert len(table.reserved) == 2


def test_waits_say_how_long_and_for_what():
    table = LimitedTable(SamplesPerInsert(2.0, 10, 4.0))
    assert table.limiter.waits() == ((0, 0.0, ""), (0, 0.0, ""))
    table.insert(11)
    with started(lambda: table.insert(2, soon()), lambda: table.insert(2, soon())):
        until_waiting(table, inserts=2)
        time.sleep(0.2)
        inserts, samples = table.limiter.waits()
        assert 0.4 <= inserts.seconds < 2
        assert inserts.waits_for == "an insert of 2 rows waits until 2 rows were drawn, 0 were"
        assert samples == (0, 0.0, "")
        for _ in range(2):
            table.sample(4, wait=soon())
            table.take()
    assert 0.4 <= table.limiter.waits()[0].seconds < 2


@pytest.mark.parametrize(("insert_seconds", "batch_seconds"), [(0.2, 0.5), (0.5, 0.2)])
@pytest.mark.parametrize(
    ("limiter", "there", "rows", "text", "wider"),
    [
        (SamplesPerInsert(1.0, 10, 5.0), 10, 7, "an error_buffer of 7 would let one of them go, it is 5", SamplesPerInsert(1.0, 10, 7.0)),
        (Queue(10), 5, 6, "a max_size of 11 would let one of them go, it is 10", Queue(11)),
    ],
)
def test_both_sides_that_wait_for_each_other_say_so_and_what_would_help(limiter, there, rows, text, wider, insert_seconds, batch_seconds):
    """The first one whose deadline comes says it."""
    table, texts = LimitedTable(limiter), []
    table.insert(there)

    def refused(act, seconds):
        with pytest.raises(RateLimitedError) as raised:
            act(rows, wait=soon(seconds))
        texts.append(str(raised.value))

    with started(partial(refused, table.sample, batch_seconds), partial(refused, table.insert, insert_seconds)):
        until_waiting(table, inserts=1, samples=1)
    assert f". An insert of {rows} rows and a batch of {rows} rows wait for each other: {text}" in texts[0]
    assert "each other" not in texts[1]
    wide = LimitedTable(wider)
    wide.insert(there)
    with started(lambda: wide.sample(rows, wait=soon())):
        wide.insert(rows, soon())


def test_a_closed_table_keeps_nobody_waiting():
    table = LimitedTable(MinSize(10))
    with started(lambda: table.sample(4, wait=soon())):
        until_waiting(table, samples=1)
        table.limiter.closed()


def test_a_reset_lets_inserts_in_that_waited_for_the_rows_before():
    table = LimitedTable(Queue(10))
    table.insert(10)
    with started(lambda: table.insert(10, soon())):
        until_waiting(table, inserts=1)
        table.reset()
    assert table.ring.size == 10


def test_inserts_that_run_at_once_do_not_overtake_each_other():
    """Rows that are let in and not in the ring yet count, or two inserts would both take the last room."""
    table = LimitedTable(Queue(10))

    def refused():
        with pytest.raises(RateLimitedError):
            table.insert(5)

    with table.limiter.inserting(6, AT_ONCE):
        with started(refused):
            pass
        with started(lambda: table.insert(4)):
            pass
        table.commit(6)
    assert table.ring.size == 10


def test_a_long_line_costs_nothing():
    table = LimitedTable(MinSize(10))
    with started(*(partial(table.sample, 1, wait=soon()) for _ in range(1000))):
        until_waiting(table, samples=1000)
        begin = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(2)
        end = resource.getrusage(resource.RUSAGE_SELF)
        seconds = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        print(f"1000 that wait: {seconds / 2:.4f} s of a processor each second, {(end.ru_nvcsw - begin.ru_nvcsw) / 2:.0f} switches")
        assert seconds < 0.1
        table.insert(10)
    assert len(table.reserved) == 1000


def test_who_cannot_go_is_not_woken():
    table = LimitedTable(Queue(1000))
    with started(*(partial(table.sample, 1, wait=soon()) for _ in range(1000))):
        until_waiting(table, samples=1000)
        begin = time.process_time()
        for _ in range(50):
            table.insert(1)
            time.sleep(0.01)
        seconds = time.process_time() - begin
        print(f"50 of 1000 let in, one by one: {seconds:.3f} s of a processor")
        assert seconds < 0.25
        table.insert(950)


def test_an_interrupt_leaves_nothing_behind():
    table = LimitedTable(Queue(10))
    for act in (partial(table.sample, 4, wait=soon()), partial(table.insert, 10, soon())):
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            act()
        timer.join()
        assert [state.waiting for state in table.limiter.waits()] == [0, 0]
        table.insert(10 - table.ring.size)
    assert table.sample(10) == 1


def test_a_storm_of_interrupts_leaves_nothing_behind():
    """Each round waits for a moment, and is interrupted anywhere: before it waits, while it does, or after it was let in."""
    table, chance, rounds = LimitedTable(Queue(10)), random.Random(3), 0
    handler = signal.signal(signal.SIGALRM, _interrupt)
    try:
        end = time.monotonic() + 4
        with paused_gc():
            while time.monotonic() < end:
                rounds += 1
                with suppress(KeyboardInterrupt, RateLimitedError):
                    _interrupted(table, chance.uniform(1e-5, 4e-4), rounds % 2)
                table.limiter.let_go()
    finally:
        signal.signal(signal.SIGALRM, handler)
    print(f"{rounds} rounds")
    assert [state.waiting for state in table.limiter.waits()] == [0, 0]
    table.insert(10)
    assert table.sample(10) == 1


def _interrupt(number, frame):
    raise KeyboardInterrupt


def _interrupted(table, seconds, inserts):
    """An insert, or a batch, after that one that has to wait. An interrupt comes after so many seconds, if it is not over before."""
    act = partial(table.limiter.inserting, 10) if inserts else partial(table.limiter.sampling, 10, 1)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with suppress(RateLimitedError), act(soon(0.0001)), act(soon(0.0001)):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Recorded:
    """A table whose record is written while its counts change: so it says what was inserted and taken at each moment."""

    def __init__(self, limiter, seconds):
        self.table, self.record, self.taken = LimitedTable(limiter, 5000), [], 0
        self.over = time.monotonic() + seconds

    def insert(self):
        chance = random.Random()
        while time.monotonic() < self.over:
            rows = chance.randint(1, 20)
            with suppress(RateLimitedError), self.table.limiter.inserting(rows, soon(0.5)), self.table.lock:
                self.table.commit(rows)
                self._note()

    def learn(self):
        ahead = []
        while time.monotonic() < self.over:
            with suppress(RateLimitedError), self.table.limiter.sampling(8, 16 - len(ahead), soon(0.0 if ahead else 0.5)) as reserved:
                ahead += [reserved] * reserved.batches
            if ahead:
                self._take(ahead.pop(0))
        for batch in ahead:
            self.table.limiter.given_back(batch)

    def _take(self, batch):
        with self.table.lock:
            self.table.limiter.taken(batch)
            self.taken += batch.rows
            self._note()

    def _note(self):
        self.record.append((self.table.ring.insert_count, self.taken))


def test_the_ratio_is_inside_the_error_buffer_at_every_moment():
    """8 actors, and 4 learners with 16 batches each on their way."""
    ratio, min_size, buffer = 4.0, 100, 400.0
    run = Recorded(SamplesPerInsert(ratio, min_size, buffer), 4)
    with started(*[run.insert] * 8, *[run.learn] * 4):
        pass
    print(f"{len(run.record)} moments, {run.record[-1][0]} rows inserted, {run.taken} taken")
    assert len(run.record) > 1000
    assert run.table.limiter.rows_taken == run.taken
    balances = [rows * ratio - drawn for rows, drawn in run.record if rows >= min_size]
    assert min(balances) >= ratio * min_size - buffer
    assert max(balances) <= ratio * min_size + buffer
    assert max(balances) - min(balances) > buffer / 2


def test_a_batch_that_is_larger_than_the_error_buffer_is_debited_as_inserts_allow_it():
    ratio, min_size, allowed = 4.0, 100, 100.0
    limiter = SamplesPerInsert(ratio, min_size, allowed)
    with ThreadPoolExecutor(3) as threads, ReplayBuffer("cpu", "cpu", 10_000, rate_limiter=limiter) as buffer:
        buffer.add_batch({"x": torch.zeros(25)})
        balances = []

        def insert():
            with suppress(ClosedError):  # So it ends.
                while True:
                    buffer.add_batch({"x": torch.zeros(25)})

        def watch():
            with suppress(ClosedError):
                while True:
                    described = buffer.describe()
                    if described.insert_count >= min_size:
                        balances.append(described.insert_count * ratio - described.sample_count)

        working = [threads.submit(work) for work in (insert, insert, watch)]
        drawn = [len(buffer.sample_batch(256)) for _ in range(10)]
        buffer.close()
        for work in working:
            work.result(30)
    assert drawn == [256] * 10
    assert ratio * min_size - allowed <= min(balances)
    assert max(balances) <= ratio * min_size + allowed
