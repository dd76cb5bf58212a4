"""Epochs on the server: what starts at once, what a batch of several blocks loses on its way, and calls of older clients."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from conftest import numbers, rows
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer

WIDTH = 1 << 20
LARGE = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


@pytest.fixture
def stub(address) -> Iterator[ReplayBufferServiceStub]:
    with grpc.insecure_channel(address, options=LARGE) as channel:
        yield ReplayBufferServiceStub(channel)


def wide(first: int, count: int) -> dict[str, torch.Tensor]:
    """Rows of 1 MiB: a batch of them has many blocks."""
    number = torch.arange(first, first + count)
    return {"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(count, WIDTH).contiguous()}


@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_rows_of_a_large_batch_that_are_overwritten_on_its_way_are_left_out_or_replaced_and_none_is_torn(address, table, mode):
    with RemoteReplayBuffer(address, table=table, buffer_size=60, transport="grpc", timeout=60) as buffer:
        buffer.add_batch(wide(0, 60))
        batches = buffer.epochs(60, on_overwrite=mode)
        stop = threading.Event()
        time.sleep(0.5)  # The server has sent what fits into the connection, and no more.
        adding = threading.Thread(target=lambda: [buffer.add_batch(wide(60 + k, 1)) for k in range(45) if not stop.is_set()])
        adding.start()
        found = [(batch["n"], batch["x"]) for batch in batches]
        stop.set()
        adding.join()
        for number, x in found:
            assert torch.equal(x, number.to(torch.uint8).unsqueeze(1).expand(len(number), WIDTH))
        came = torch.cat([number for number, _ in found]).tolist()
        if mode == "skip":
            assert came == sorted(set(came))
            assert max(came) == 59
            assert len(came) + batches.overwritten == 60
        else:
            assert [number % 60 for number in came] == list(range(60))
            assert batches.overwritten == sum(number >= 60 for number in came)


def test_a_shuffled_epoch_of_many_rows_starts_as_soon_as_one_of_few(stub, table):
    """Rows without bytes: so many cost nothing but their order."""

    def made(name: str, count: int) -> str:
        stub.CreateTable(pb.CreateTableRequest(table=name, buffer_size=1 << 40), timeout=10)
        for _ in range(count >> 20 or 1):
            rows = min(count, 1 << 20)
            block = save({"z": np.empty((rows, 0), np.float32)}, {"batch_shape": f"[{rows}]"})
            stub.Add(pb.AddRequest(table=name, block=block), timeout=10)
        return name

    def seconds(name: str) -> float:
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(pb.EpochRequest(table=name, batch_size=256, shuffle=True, credits=1))
        requests.put(None)
        start = time.perf_counter()
        assert len(list(stub.Epoch(iter(requests.get, None), timeout=20))) == 1
        return time.perf_counter() - start

    few, many = made(f"{table}-few", 10_000), made(f"{table}-many", 10 << 20)
    times = [(seconds(few), seconds(many)) for _ in range(60)]
    medians = np.median(times, axis=0)
    print(f"start of a shuffled epoch: {1e6 * medians[0]:.0f} us over 10,000 rows, {1e6 * medians[1]:.0f} us over {10 << 20}")
    assert medians[1] < 1.5 * medians[0]


def test_an_epoch_of_which_nothing_is_left_ends_at_once_and_one_that_leaves_out_much_ends_too(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=20_000, timeout=20) as buffer:
        buffer.add_batch(rows(20_000))
        batches, all_gone = buffer.epochs(1, 2, on_overwrite="skip"), buffer.epochs(1, 1 << 40, on_overwrite="skip", fields=["action"])
        buffer.add_batch(rows(19_999, 20_000))
        start = time.monotonic()
        came = [number for batch in batches for number in batch["action"].tolist()]
        assert time.monotonic() - start < 15
        assert came[-1] == 19_999
        assert batches.overwritten == 40_000 - len(came)
        buffer.add_batch(rows(1, 39_999))
        assert len(list(all_gone)) <= 2
        assert all_gone.epoch == 1 << 40


def test_a_call_without_a_generation_has_the_newest_row_of_each_slot_and_no_progress(stub, address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer:
        buffer.add_batch(rows(10))
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(pb.EpochRequest(table=table, batch_size=2, credits=1))
        responses = stub.Epoch(iter(requests.get, None), timeout=20)
        answers = [next(responses)]
        buffer.add_batch(rows(7, 10))
        requests.put(pb.EpochRequest(credits=10))
        answers += list(responses)
        assert [len(answer.progress) for answer in answers] == [0] * 5
        assert [answer.batch_rows for answer in answers] == [2] * 5
        assert numbers(buffer.sample_all()) == [10, 11, 12, 13, 14, 15, 16, 7, 8, 9]


def test_an_epoch_without_rows_ends_when_its_client_is_gone(address, table, stub):
    """A client that is told nothing of its progress: all of its batches are empty, and there are more than can be looked for in a lifetime."""
    with RemoteReplayBuffer(address, table=table, buffer_size=10, max_times_sampled=1) as buffer:
        buffer.add_batch(rows(4))
        requests: queue.SimpleQueue[pb.EpochRequest | None] = queue.SimpleQueue()
        requests.put(pb.EpochRequest(table=table, batch_size=1, n_epochs=1 << 40, credits=1))
        call = stub.Epoch(iter(requests.get, None))
        assert next(call).batch_rows == 1
        buffer.sample_batch(4)
        requests.put(pb.EpochRequest(credits=1))
        call.cancel()
        requests.put(None)
        ends = time.monotonic() + 30
        while any("Epoch" in client.open_calls for client in RemoteReplayBuffer.server_status(address).clients):
            assert time.monotonic() < ends
            time.sleep(0.05)
