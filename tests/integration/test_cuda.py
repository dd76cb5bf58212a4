"""Rows and batches on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch

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
