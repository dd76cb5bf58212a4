"""Ctrl-C at any moment of a call: no row is lost, and none is stored twice."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter

import pytest
import torch
from tensordict import TensorDict

from children import child_of
from interrupts import interrupted_at, interrupting
from tdreplay.errors import CancelledError, ClosedError, FailedPreconditionError
from tdreplay_client import RemoteReplayBuffer, Writer

# An interrupt that comes in a finalizer is printed, and goes no further.
# So is what ends gRPC's own thread, where the channel of an interrupted call is closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
N = 3000


@pytest.fixture
def buffer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=50_000, timeout=10) as made:
        with made.writer() as writer:  # What is imported when it is needed first is imported now.
            writer.append({"n": 0})
            writer.extend(small(0, 2))
        made.reset()
        yield made


def small(first: int, n: int) -> TensorDict:
    return TensorDict({"n": torch.arange(first, first + n)}, [n])


def wide(first: int, n: int) -> TensorDict:
    number = torch.arange(first, first + n)
    return TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(n, 64 << 10)}, [n])


def stored(buffer: RemoteReplayBuffer) -> list[int]:
    return buffer.sample_all()["n"].tolist()


def until_it_returns(call) -> None:
    while True:
        try:
            return call()
        except KeyboardInterrupt:
            continue


@pytest.mark.parametrize("flush_rows", [1, 8, 64])
def test_rows_whose_append_is_repeated_after_an_interrupt_are_stored_once(buffer, flush_rows):
    writer = buffer.writer(flush_rows=flush_rows)
    with interrupting(Writer.append.__code__, 0.005) as hits:
        for number in range(N):
            until_it_returns(lambda number=number: writer.append({"n": number}))
            if number % 1000 == 999:
                writer.flush()
    writer.flush()
    assert hits[0] >= 3
    assert stored(buffer) == list(range(N))


def append_in_a_storm(address: str, table: str, flush_rows: int) -> None:
    """Interrupts that come so often that one comes while another one is dealt with. They hit finalizers too, where Python only prints them."""
    sys.unraisablehook = lambda _unraisable: None
    with RemoteReplayBuffer(address, table=table, timeout=20) as buffer, buffer.writer(flush_rows=flush_rows) as writer:
        writer.append({"n": 0})
        with interrupting(Writer.append.__code__, 0.0004, 10_000) as hits:
            for number in range(1, N):
                until_it_returns(lambda number=number: writer.append({"n": number}))
    print(hits[0], flush=True)


@pytest.mark.parametrize("flush_rows", [1, 8, 64])
def test_an_interrupt_while_another_one_is_dealt_with_stores_no_row_twice(address, buffer, flush_rows):
    with child_of(append_in_a_storm, address, buffer.table, flush_rows) as child:
        assert child.wait() == 0
    assert int(child.line) >= 3
    assert stored(buffer) == list(range(N))


def test_a_row_whose_append_was_interrupted_is_stored_at_most_once_and_the_others_once(buffer):
    writer, interrupted = buffer.writer(flush_rows=8), set()
    with interrupting(Writer.append.__code__, 0.005):
        for number in range(N):
            try:
                writer.append({"n": number})
            except KeyboardInterrupt:
                interrupted.add(number)
    writer.close()
    found = stored(buffer)
    assert interrupted
    assert found == sorted(set(found))
    assert set(range(N)) - set(found) <= interrupted


@pytest.mark.parametrize(("make", "n"), [(small, 10), (wide, 100)], ids=["small", "several blocks"])
def test_batches_whose_extend_was_interrupted_are_stored_once(buffer, make, n):
    """Each is given again, or comes back with the next call's error, and is then given to another writer."""
    writer, first, last, back = buffer.writer(), 0, (300 if make is small else 12) * n, None
    with interrupting(Writer.extend.__code__, 0.005, 1000 if make is small else 8):
        while first < last:
            given = make(first, n) if back is None else back
            try:
                writer.extend(given)
            except KeyboardInterrupt:
                continue
            except CancelledError as error:
                back, writer = error.rows, buffer.writer()
                continue
            first = int(given["n"][-1]) + 1
            back = None
    writer.close()
    assert stored(buffer) == list(range(last))


@pytest.mark.parametrize("call", [Writer.flush, Writer.close])
def test_an_interrupted_flush_or_close_loses_nothing(buffer, call):
    number = 0
    with interrupting(call.__code__, 0.002) as hits:
        end = time.monotonic() + 20
        while hits[0] < 5 and time.monotonic() < end:
            writer = buffer.writer(flush_seconds=1000)
            for _ in range(20):
                writer.append({"n": number})
                number += 1
            until_it_returns(lambda writer=writer: call(writer))
            until_it_returns(writer.close)
    assert hits[0] >= 5
    assert stored(buffer) == list(range(number))


def test_rows_of_a_writer_that_was_interrupted_while_it_was_closed_are_stored(buffer):
    with interrupting(Writer.close.__code__, 0.001):
        for first in range(0, 400, 20):
            writer = buffer.writer(flush_seconds=1000)
            for number in range(first, first + 20):
                writer.append({"n": number})
            try:
                writer.close()
            except KeyboardInterrupt:
                del writer
    deadline = time.monotonic() + 10
    while len(buffer) < 400:
        assert time.monotonic() < deadline
    assert sorted(stored(buffer)) == list(range(400))


@pytest.mark.parametrize("flush_rows", [1, 4, 1000])
def test_an_append_may_be_interrupted_at_any_line(buffer, flush_rows):
    writer, number, step, interrupted = buffer.writer(flush_rows=flush_rows, flush_seconds=1000), 1, 1, True
    writer.append({"n": 0})
    while interrupted and step < 500:
        interrupted = interrupted_at(step, "tdreplay_client.", lambda number=number: writer.append({"n": number}))
        if interrupted:
            writer.append({"n": number})
        writer.flush()  # Else an append waits for those before it, and the lines of its wait are without number.
        number, step = number + 1, step + 1
    writer.close()
    assert 20 < number < 500
    assert stored(buffer) == list(range(number))


# -- calls of a buffer: a user's thread is inside gRPC -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["add", "sample_batch"])
def test_what_grpc_locked_in_the_moment_of_an_interrupt_stops_no_later_call(address, table, call):
    """Each line of Python's own locks is interrupted once: that is where a lock is taken, or about to be given back."""
    buffer, steps, interrupted = RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=5), 0, True
    while interrupted and steps < 60:
        steps += 1
        for number in (2 * steps, 2 * steps + 1):
            buffer.add({"n": number})
            assert len(buffer.sample_batch(3)) == 3
        interrupted = interrupted_at(steps, "threading", lambda: buffer.add({"n": 0}) if call == "add" else buffer.sample_batch(3))
    assert 5 < steps < 60
    begin = time.monotonic()
    buffer.close()
    assert time.monotonic() - begin < 5


# -- signal handlers that use the client ----------------------------------------------------------------------------------------------------------


def test_a_signal_handler_may_close_the_writer_that_it_interrupts(buffer):
    """Every row whose append returned is stored once, and the one whose append was interrupted at most once; no call hangs."""
    number, appended = 0, []
    for attempt in range(20):
        writer = buffer.writer(flush_rows=4, flush_seconds=1000)
        before = signal.signal(signal.SIGALRM, lambda *_, writer=writer: writer.close())
        signal.setitimer(signal.ITIMER_REAL, 0.003 + attempt * 0.001)
        try:
            with pytest.raises(ClosedError):  # noqa: PT012 - one of many calls is the one that raises.
                while True:
                    number += 1
                    writer.append({"n": number})
                    appended.append(number)
        finally:
            signal.signal(signal.SIGALRM, before)
        deadline = time.monotonic() + 10
        while len(buffer) < len(appended):
            assert time.monotonic() < deadline
    found = Counter(stored(buffer))
    assert set(found.values()) == {1}
    assert set(appended) <= found.keys() <= set(range(1, number + 1))


def test_a_signal_handler_must_not_write_into_the_writer_that_it_interrupts(buffer):
    writer, refused, number = buffer.writer(flush_rows=4), [], 0

    def handle(*_: object) -> None:
        try:
            writer.append({"n": -1})
        except FailedPreconditionError as error:
            refused.append(error)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        end = time.monotonic() + 20
        while not refused and time.monotonic() < end:
            writer.append({"n": number})
            number += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    writer.close()
    assert refused
    assert [n for n in stored(buffer) if n >= 0] == list(range(number))
