"""Batches through PyTorch's DataLoader, and what happens in forked processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os

import pytest
from torch.utils.data import DataLoader

from conftest import numbers, rows
from tdreplay.errors import ForkedError
from tdreplay_client import RemoteReplayBuffer, ReplayDataset
from tdreplay_server import ServerConfig, spawn_server


@pytest.fixture(scope="module")
def filled():
    """The address of a server in a process of its own: this one is going to be forked."""
    with spawn_server(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server:
        with RemoteReplayBuffer(server.address) as buffer:
            buffer.add_batch(rows(100))
        yield server.address


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_brings_batches(filled, workers):
    for batch in itertools.islice(ReplayDataset(filled, 16, prefetch=4).loader(workers), 10):
        assert len(numbers(batch)) == 16


def test_a_dataset_can_be_iterated_again(filled):
    dataset = ReplayDataset(filled, 4, fields=["action"])
    for _ in range(3):
        assert set(next(iter(dataset)).keys()) == {"action"}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_says_so_instead_of_hanging(filled):
    loader = DataLoader(ReplayDataset(filled, 16), batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ForkedError, match="spawn"):
        next(iter(loader))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_buffer_in_a_forked_process_says_so_instead_of_hanging(filled):
    with RemoteReplayBuffer(filled, timeout=5) as buffer:
        receiver, sender = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            try:
                buffer.sample_batch(3)
            except ForkedError as error:
                sender.send(str(error))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(20)
        assert process.exitcode == 0
        assert receiver.poll(0)
        assert str(os.getpid()) in receiver.recv()
        assert len(buffer.sample_batch(3)) == 3
