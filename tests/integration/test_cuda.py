"""Rows and batches on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch finds none")


@pytest.mark.parametrize("storing_device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("remote", [False, True], ids=["in-process", "remote"])
def test_rows_go_from_any_device_through_any_storing_device_to_any_device(device, storing_device, remote):
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        with (
            RemoteReplayBuffer(server.address, device=device, storing_device=storing_device, buffer_size=10, table="t")
            if remote
            else ReplayBuffer(device, storing_device, 10)
        ) as buffer:
            buffer.add_batch(rows(6).to("cuda"))
            buffer.add_batch(rows(7, 6))
            assert buffer.storing_device == torch.device(storing_device)
            batches = [buffer.sample_batch(5), buffer.sample_all(), buffer.sample_by_index([1, 0]), next(buffer.create_epoch_iterator(4))]
            assert {leaf.device for batch in batches for leaf in batch.values(True, True)} == {torch.device(device)}
            assert numbers(batches[1].cpu()) == [10, 11, 12, 3, 4, 5, 6, 7, 8, 9]
            assert numbers(batches[2].cpu()) == [11, 10]


@pytest.mark.parametrize("transport", ["shared_memory", "grpc"])
def test_batches_of_a_stream_are_whole_when_they_are_used_at_once(transport):
    """They are copied by a CUDA stream of their own: work on the current one must wait for it, and their memory must not be used again meanwhile."""
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0")) as server,
        RemoteReplayBuffer(server.address, device="cuda:0", buffer_size=64, transport=transport) as buffer,
    ):
        number = torch.arange(64)
        buffer.add_batch(TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(64, 1 << 16)}, [64]))
        with buffer.stream(32, prefetch=4) as batches:
            wrong = torch.zeros((), dtype=torch.int64, device="cuda:0")
            for _ in range(200):
                batch = next(batches)
                wrong += (batch["x"] != batch["n"].to(torch.uint8).unsqueeze(1)).sum()  # Nothing waits for the device in between.
        assert wrong.item() == 0
