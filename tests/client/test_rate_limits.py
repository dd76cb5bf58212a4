"""Clients of tables whose rate limiters make them wait, and whose rows leave."""

from __future__ import annotations

import threading
import time
from collections import deque
from copy import copy

import pytest
import torch

from conftest import numbers, rows
from tdreplay.errors import (
    ClosedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NoPrioritiesError,
    RateLimitedError,
    RowIdError,
    TableExistsError,
)
from tdreplay.priorities import Updated
from tdreplay_client import MinSize, Prioritized, Queue, RemoteReplayBuffer, SamplesPerInsert

FIFO_QUEUE = {"sampler": "fifo", "max_times_sampled": 1}


@pytest.fixture
def open_buffer(address, table):
    """Opens buffers of one table."""
    opened = []

    def open_one(**options):
        opened.append(RemoteReplayBuffer(address, table=table, **options))
        return opened[-1]

    yield open_one
    for buffer in opened:
        buffer.close()


# -- settings -------------------------------------------------------------------------------------------------------------------------------------


def test_the_settings_of_a_table_are_compared_with_what_is_there(open_buffer):
    limiter = SamplesPerInsert(2.0, min_size=10, error_buffer=20)
    open_buffer(buffer_size=100, sampler=Prioritized(alpha=0.7), rate_limiter=limiter)
    open_buffer()
    open_buffer(sampler={"name": "prioritized", "alpha": 0.7}, rate_limiter=limiter, max_times_sampled=0)
    with pytest.raises(TableExistsError, match=r"sampler prioritized\(alpha=0.7\), not fifo"):
        open_buffer(sampler="fifo")
    with pytest.raises(TableExistsError, match=r"rate_limiter .*, not min_size\(min_size=3\), max_times_sampled 0, not 1"):
        open_buffer(rate_limiter=MinSize(3), max_times_sampled=1)
    with pytest.raises(TableExistsError, match=r"sampler prioritized\(alpha=0.7\), not prioritized\(alpha=0.6\)"):
        open_buffer(buffer_size=100, sampler="prioritized")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sampler": "best"}, "sampler"),
        ({"sampler": 3}, "sampler"),
        ({"rate_limiter": "queue"}, "rate_limiter 'queue' needs max_size"),
        ({"max_times_sampled": -1}, "max_times_sampled"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(open_buffer, setting, message):
    with pytest.raises(InvalidArgumentError, match=message):
        open_buffer(buffer_size=10, **setting)


def test_a_copy_knows_what_its_table_asks_of_it(open_buffer):
    buffer = open_buffer(buffer_size=100, rate_limiter=Queue(4), timeout=5)
    with copy(buffer) as other:
        writing = threading.Thread(target=other.add_batch, args=(rows(12),))
        writing.start()
        with buffer.stream(4, prefetch=4) as stream:
            for _ in range(3):
                next(stream)
            writing.join(10)
    assert not writing.is_alive()


# -- waiting --------------------------------------------------------------------------------------------------------------------------------------


def test_a_batch_that_waited_too_long_says_for_what(open_buffer):
    buffer = open_buffer(buffer_size=100, rate_limiter=MinSize(10), timeout=1)
    buffer.add_batch(rows(6))
    for take in (lambda: buffer.sample_batch(2), lambda: buffer.sample_batch(2, seed=3)):
        start = time.monotonic()
        with pytest.raises(RateLimitedError, match="10 rows, 6 are there"):
            take()
        assert 0.5 < time.monotonic() - start < 5


def test_a_stream_that_waited_too_long_goes_on_when_it_is_asked_again(open_buffer):
    buffer = open_buffer(buffer_size=100, rate_limiter=MinSize(10), timeout=1)
    buffer.add_batch(rows(6))
    with buffer.stream(4, seed=1) as stream:
        for _ in range(2):
            with pytest.raises(RateLimitedError, match="10 rows, 6 are there"):
                next(stream)
        buffer.add_batch(rows(4, 6))
        first = next(stream)
    with buffer.stream(4, seed=1) as again:
        assert next(again)["row_id"].tolist() == first["row_id"].tolist()


def test_a_stream_waits_as_long_as_it_may_though_its_call_waited_before(open_buffer):
    """The server waits for a batch that is read ahead while the learner is at work with the one before."""
    buffer = open_buffer(buffer_size=100, rate_limiter=Queue(8), timeout=2)
    buffer.add_batch(rows(4))
    with buffer.stream(4, prefetch=2) as stream:
        next(stream)
        time.sleep(1.5)
        writing = threading.Timer(1.2, buffer.add_batch, (rows(4, 4),))
        writing.start()
        assert len(next(stream)) == 4
        writing.join()


@pytest.mark.parametrize("transport", ["grpc", "auto"])
def test_a_stream_waits_no_longer_than_it_may_though_its_call_waited_before(open_buffer, transport):
    """The server gives up while there is time left. The next call waits for the rest of it, whatever the server says of shared memory."""
    buffer = open_buffer(buffer_size=100, rate_limiter=Queue(8), timeout=2, transport=transport)
    buffer.add_batch(rows(4))
    giving_up = threading.Timer(10, buffer.close)
    giving_up.start()
    with buffer.stream(4, prefetch=2) as stream:
        next(stream)
        time.sleep(0.8)
        with pytest.raises(RateLimitedError):
            next(stream)
    giving_up.cancel()


def test_an_insert_that_waited_too_long_is_not_stored(open_buffer):
    buffer = open_buffer(buffer_size=100, rate_limiter=Queue(4), timeout=1)
    buffer.add_batch(rows(4))
    for add in (lambda: buffer.add(rows(1, 4)[0]), lambda: buffer.add_batch(rows(2, 4))):
        start = time.monotonic()
        with pytest.raises(RateLimitedError):
            add()
        assert 0.5 < time.monotonic() - start < 5
    assert buffer.size == 4


def test_a_writer_that_waited_too_long_hands_its_rows_back(open_buffer):
    buffer = open_buffer(buffer_size=100, rate_limiter=Queue(4), timeout=1)
    writer = buffer.writer(flush_rows=2)
    writer.extend(rows(7))
    with pytest.raises(RateLimitedError) as caught:
        writer.flush()
    left = caught.value.rows
    assert numbers(left) == [4, 5, 6]
    buffer.sample_batch(4)
    buffer.add_batch(left)
    assert numbers(buffer.sample_all()) == list(range(7))


@pytest.mark.parametrize(("limiter", "batches"), [(Queue(5), 30), (SamplesPerInsert(2.0, min_size=1, error_buffer=10), 56)])
@pytest.mark.parametrize("way", ["add_batch", "append", "extend"])
def test_blocks_have_no_more_rows_than_the_limiter_lets_in(open_buffer, limiter, batches, way):
    buffer = open_buffer(buffer_size=1000, rate_limiter=limiter, timeout=20)

    def write():
        if way == "add_batch":
            buffer.add_batch(rows(60))
            return
        with buffer.writer(flush_rows=16) as writer:
            if way == "extend":
                writer.extend(rows(60))
            for row in range(60 if way == "append" else 0):
                writer.append(rows(1, row)[0])

    writing = threading.Thread(target=write)
    writing.start()
    with buffer.stream(2, prefetch=4) as stream:
        for _ in range(batches):
            next(stream)
    writing.join()
    assert numbers(buffer.sample_all()) == list(range(60))


# -- what was taken ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 2, 7, 16])
@pytest.mark.parametrize("transport", ["shared_memory", "grpc"])
def test_a_queue_brings_each_row_once_in_order(open_buffer, prefetch, transport):
    buffer = open_buffer(buffer_size=64, rate_limiter=Queue(16), timeout=20, transport=transport, **FIFO_QUEUE)

    def write():
        with buffer.writer(flush_rows=4) as writer:
            for row in range(400):
                writer.append(rows(1, row)[0])

    writing = threading.Thread(target=write)
    writing.start()
    with buffer.stream(4, prefetch=prefetch) as stream:
        taken = [number for _ in range(100) for number in numbers(next(stream))]
    writing.join()
    assert taken == list(range(400))


def test_batches_that_were_read_ahead_and_not_taken_come_again(open_buffer):
    buffer = open_buffer(buffer_size=100, timeout=5, **FIFO_QUEUE)
    buffer.add_batch(rows(40))
    with buffer.stream(4, prefetch=8) as stream:
        first = [number for _ in range(3) for number in numbers(next(stream))]
    with buffer.stream(4, prefetch=8) as stream:
        second = [number for _ in range(7) for number in numbers(next(stream))]
    assert first + second == list(range(40))


def test_uniform_batches_of_a_consuming_table_are_refused(open_buffer):
    buffer = open_buffer(buffer_size=100, timeout=5, **FIFO_QUEUE)
    buffer.add_batch(rows(4))
    with pytest.raises(FailedPreconditionError):
        buffer.sample_batch(2, uniform=True)
    with pytest.raises(FailedPreconditionError), buffer.stream(2, uniform=True) as stream:
        next(stream)


# -- updates over a stream --------------------------------------------------------------------------------------------------------------------------


def test_a_stream_updates_priorities_in_order_and_says_what_became_of_them(open_buffer):
    buffer = open_buffer(buffer_size=10, sampler=Prioritized(alpha=1.0), timeout=20)
    buffer.add_batch(rows(10))
    with buffer.stream(8, prefetch=2) as stream:
        batch = next(stream)
        stream.update_priorities(batch, torch.full((8,), 0.5))
        stream.update_priorities(batch, -torch.arange(1, 9, dtype=torch.float32))  # Errors have a sign.
        while stream.updated == Updated(0, 0):
            next(stream)
        buffer.add_batch(rows(10, 10))
        stream.update_priorities(batch, 3.0)
        while sum(stream.updated) < 24:
            next(stream)
        assert stream.updated == Updated(16, 8)
    assert set(buffer.sample_batch(200)["priority"].tolist()) == {8.0}


def test_updates_that_were_said_last_arrive_though_the_stream_is_closed(open_buffer):
    buffer = open_buffer(buffer_size=30_000, sampler=Prioritized(alpha=1.0), timeout=20)
    buffer.add_batch({"x": torch.arange(30_000)})
    with buffer.stream(30_000, prefetch=1) as stream:
        batch = next(stream)
        stream.update_priorities(batch, 7.0)
    drawn = set(batch["row_id"].tolist())
    again = buffer.sample_batch(1000)
    assert all((row in drawn) == (priority == 7.0) for row, priority in zip(again["row_id"].tolist(), again["priority"].tolist(), strict=True))


@pytest.mark.parametrize("errors", [[1.0, float("nan")], [float("inf"), 1.0], [1.0, 2.0, 3.0], ["a", "b"]])
def test_an_error_that_cannot_be_is_refused_at_once(open_buffer, errors):
    buffer = open_buffer(buffer_size=10, sampler="prioritized")
    buffer.add_batch(rows(4))
    with buffer.stream(2) as stream:
        batch = next(stream)
        with pytest.raises(InvalidArgumentError, match="priorit"):
            stream.update_priorities(batch, errors)
        with pytest.raises(InvalidArgumentError, match="row_id"):
            stream.update_priorities(batch.exclude("row_id"), 1.0)
        assert len(next(stream)) == 2
    with pytest.raises(ClosedError):
        stream.update_priorities(batch, 1.0)


def test_an_update_that_the_server_refuses_ends_the_stream(open_buffer):
    buffer = open_buffer(buffer_size=10)
    buffer.add_batch(rows(4))
    with buffer.stream(2) as stream:
        stream.update_priorities(next(stream), 1.0)
        with pytest.raises(NoPrioritiesError):
            deque(stream, maxlen=0)
        assert next(stream, None) is None


def test_a_row_id_that_was_never_given_ends_the_stream(open_buffer):
    buffer = open_buffer(buffer_size=10, sampler="prioritized")
    buffer.add_batch(rows(4))
    with buffer.stream(2) as stream:
        batch = next(stream)
        batch["row_id"] = batch["row_id"] + 100
        stream.update_priorities(batch, 1.0)
        with pytest.raises(RowIdError):
            deque(stream, maxlen=0)
