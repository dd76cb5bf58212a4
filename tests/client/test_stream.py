"""Streams of random batches, read ahead."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest
import torch
from tensordict import TensorDict

from children import server_process
from conftest import freeze, numbers, rows, thaw
from interrupts import interrupting
from tdreplay.errors import (
    ClosedError,
    DeadlineError,
    EmptyTableError,
    FieldNotFoundError,
    InvalidArgumentError,
    ServerUnavailableError,
)
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(params=["shared_memory", "grpc"])
def buffer(address, table, request):
    with RemoteReplayBuffer(address, table=table, buffer_size=1000, timeout=10, transport=request.param) as made:
        yield made


@pytest.mark.parametrize("prefetch", [1, 2, 3, 16])
def test_a_stream_brings_random_batches_without_end(buffer, prefetch):
    buffer.add_batch(rows(20))
    with buffer.stream(32, prefetch=prefetch) as batches:
        taken = [next(batches) for _ in range(60)]
    assert all(batch.batch_size == torch.Size([32]) for batch in taken)
    drawn = torch.tensor([numbers(batch) for batch in taken]).flatten()
    assert len(drawn.unique()) == 20  # 1,920 draws of 20 rows: the chance to miss one of them is below 1 in 10^41.
    assert taken[0]["index"].tolist() != taken[1]["index"].tolist()


def test_batches_that_share_a_message_are_uniform_together(buffer):
    buffer.add_batch(rows(8))
    with buffer.stream(50, prefetch=16) as batches:
        counts = torch.bincount(torch.cat([next(batches)["action"] for _ in range(320)]), minlength=8)
    assert ((counts - 2000).abs() < 252).all(), counts


def test_batches_that_share_a_message_do_not_share_their_memory(buffer):
    buffer.add_batch(rows(100))
    with buffer.stream(4, prefetch=16) as batches:
        first, *others = [next(batches) for _ in range(8)]
        for leaf in first.values(include_nested=True, leaves_only=True):
            leaf.zero_()
        for batch in others:
            numbers(batch)


def test_large_batches_stream_in_several_blocks(buffer):
    batch = TensorDict({"n": torch.arange(20), "x": torch.arange(20, dtype=torch.uint8).unsqueeze(1).expand(20, 1 << 20)}, [20])
    buffer.add_batch(batch)
    with buffer.stream(10, prefetch=3) as batches:
        for _ in range(5):
            taken = next(batches)
            assert torch.equal(taken["x"], taken["n"].to(torch.uint8).unsqueeze(1).expand(10, 1 << 20))


def test_only_the_fields_that_are_asked_for_are_streamed(buffer):
    buffer.add_batch(rows(10))
    with buffer.stream(4, fields=["action", "next.obs"]) as batches:
        assert set(next(batches).keys(include_nested=True, leaves_only=True)) == {"action", ("next", "obs")}


@pytest.mark.parametrize("prefetch", [1, 4, 16])
def test_a_batch_is_never_older_than_the_window(address, table, prefetch):
    with RemoteReplayBuffer(address, table=table, buffer_size=1) as buffer:
        buffer.add_batch(rows(1, 0))
        with buffer.stream(2, prefetch=prefetch) as batches:
            next(batches)
            time.sleep(0.3)  # Long enough for a server that runs ahead without credits to run far.
            buffer.add_batch(rows(1, 1))
            old = [numbers(next(batches)) for _ in range(60)].index([1, 1])
    assert old <= prefetch


def test_breaking_out_of_the_loop_ends_the_call_on_the_server():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100, max_workers=4, max_streams=1)) as server:
        with RemoteReplayBuffer(server.address, timeout=10) as buffer:
            buffer.add_batch(rows(100))
            for _ in range(20):  # One slot: each stream must have given it back before the next one opens.
                for batch in retried(buffer):
                    assert len(batch) == 8
                    break
                gc.collect()


def retried(buffer: RemoteReplayBuffer):
    """A stream, as soon as the server has room for it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return buffer.stream(8)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def test_a_closed_stream_is_at_its_end(buffer):
    buffer.add_batch(rows(10))
    batches = buffer.stream(4)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_closing_the_buffer_ends_its_streams_with_an_error(buffer):
    buffer.add_batch(rows(10))
    batches = buffer.stream(4)
    next(batches)
    buffer.close()
    with pytest.raises(ClosedError):
        list(batches)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"batch_size": 0}, InvalidArgumentError),
        ({"batch_size": 4, "prefetch": 0}, InvalidArgumentError),
        ({"batch_size": 4, "prefetch": 5000}, InvalidArgumentError),
        ({"batch_size": 4, "fields": ["nope"]}, FieldNotFoundError),
    ],
)
def test_a_bad_query_is_refused_when_the_stream_is_opened(buffer, arguments, error):
    buffer.add_batch(rows(10))
    with pytest.raises(error):
        buffer.stream(**arguments)


def test_a_stream_of_an_empty_table_is_refused(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=0.5) as buffer, pytest.raises(EmptyTableError):
        next(buffer.stream(4))  # Once it waited for the first row.


def test_a_stream_whose_server_freezes_is_a_deadline_error_and_one_whose_server_dies_names_it():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=1000)) as server:
        with RemoteReplayBuffer(server.address, timeout=1) as buffer:
            buffer.add_batch(rows(100))
            batches, killed = buffer.stream(4), buffer.stream(4)
            freeze(server.pid)
            try:
                with pytest.raises(DeadlineError, match=server.address):
                    list(batches)
            finally:
                thaw(server.pid)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(ServerUnavailableError, match=server.address):
                list(killed)


def test_a_reader_that_pauses_longer_than_the_timeout_goes_on(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=0.3) as buffer:
        buffer.add_batch(rows(10))
        with buffer.stream(4, prefetch=2) as batches:
            next(batches)
            time.sleep(1)
            for _ in range(10):
                next(batches)


def test_no_thread_is_left_when_streams_are_closed(buffer):
    buffer.add_batch(rows(10))
    before = client_threads()
    streams = [buffer.stream(4) for _ in range(10)]
    for batches in streams:
        next(batches)
        batches.close()
    deadline = time.monotonic() + 10
    while len(client_threads() - before) > 2 and time.monotonic() < deadline:  # The watch over deadlines, and gRPC's own, live as long as the buffer.
        time.sleep(0.01)
    assert len(client_threads() - before) <= 2, client_threads() - before


def client_threads() -> set[threading.Thread]:
    """All threads but the workers of the server, which runs in this process too."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("tdreplay-call")}


def test_a_stream_that_is_closed_while_another_thread_waits_stays_closed():
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=100, max_streams=4)) as server, RemoteReplayBuffer(server.address) as buffer:
        buffer.add_batch(rows(10))
        for _ in range(10):
            batches, taken = buffer.stream(4), []
            thread = threading.Thread(target=lambda batches=batches, taken=taken: [taken.append(len(batch)) for batch in batches])
            thread.start()
            while not taken:
                time.sleep(0.001)
            batches.close()
            thread.join(10)
            assert not thread.is_alive()
            with pytest.raises(StopIteration):
                next(batches)


@pytest.mark.parametrize("kind", ["stream", "epochs"])
def test_an_interrupted_stream_goes_on_where_it_was(buffer, kind):
    buffer.add_batch(rows(10))
    batches = buffer.stream(4, seed=1) if kind == "stream" else buffer.epochs(1, 100_000)
    expected = buffer.stream(4, seed=1) if kind == "stream" else buffer.epochs(1, 100_000)
    interrupted, taken = 0, []
    with interrupting(type(batches).__next__.__code__, 0.002, 1) as hits:
        while not interrupted:
            try:
                taken.append(next(batches))
            except KeyboardInterrupt:
                interrupted = hits[0]
    taken += [next(batches) for _ in range(20)]
    assert [numbers(batch) for batch in taken] == [numbers(next(expected)) for _ in taken]
    batches.close()
    expected.close()
