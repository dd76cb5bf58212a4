"""Batches through PyTorch's DataLoader, and what happens in forked processes."""

from __future__ import annotations

import itertools

import pytest
import torch

from children import completed, server_process
from conftest import numbers, rows
from tdreplay.errors import InvalidArgumentError
from tdreplay.seeds import derived_seed
from tdreplay_client import RemoteReplayBuffer, ReplayDataset, Transitions
from tdreplay_server import ServerConfig


@pytest.fixture(scope="module")
def filled():
    """The address of a server in a process of its own: this one is going to be forked."""
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=100)) as server:
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seeded_data_loader_brings_the_batches_of_its_seed_and_each_worker_others(filled, workers):
    seeds = [derived_seed(7, worker) for worker in range(workers)] or [7]
    with RemoteReplayBuffer(filled) as buffer:
        streams = [buffer.stream(16, seed=seed) for seed in seeds]
        expected = [numbers(next(batches)) for _ in range(4) for batches in streams]
    loaded = ReplayDataset(filled, 16, seed=7).loader(workers)
    assert [numbers(batch) for batch in itertools.islice(loaded, len(expected))] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_brings_what_a_view_makes_of_steps(filled, workers):
    steps = rows(10).exclude("next", "done")
    ids = {"episode_id": torch.zeros(10, dtype=torch.int64), "step": torch.arange(10), "step_kind": torch.zeros(10, dtype=torch.uint8)}
    with RemoteReplayBuffer(filled, table=f"steps-{workers}", buffer_size=10, trajectories={"ends": ["over"]}) as buffer:
        buffer.add_batch(steps.update({"over": torch.zeros(10, dtype=torch.bool), **ids}))
    dataset = ReplayDataset(filled, 16, table=f"steps-{workers}", fields=["step"], view=Transitions(2, frame_stack={"obs": 3}))
    for batch in itertools.islice(dataset.loader(workers), 4):
        assert set(batch.keys()) == {"obs", "step", "next", "discount", "n_steps"}
        assert torch.equal(batch["next", "obs"][:, -1, 0], batch["step"] + 2.0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"prefetch": 0}, "prefetch"),
        ({"prefetch": 10**6}, "prefetch"),
        ({"fields": []}, "fields"),
        ({"fields": [3]}, "fields"),
        ({"device": "cuda:99"}, "device"),
        ({"timeout": "long"}, "timeout"),
        ({"seed": -1}, "seed"),
        ({"view": "transitions"}, "view"),
    ],
)
def test_a_dataset_refuses_what_it_cannot_do_before_it_is_iterated(arguments, word):
    with pytest.raises(InvalidArgumentError, match=word):
        ReplayDataset("127.0.0.1:1", **{"batch_size": 4, **arguments})


FORKED_WORKER = """
import sys
from torch.utils.data import DataLoader
from tdreplay.errors import ForkedError
from tdreplay_client import ReplayDataset

loader = DataLoader(ReplayDataset(sys.argv[1], 16), batch_size=None, num_workers=1, multiprocessing_context="fork")
try:
    next(iter(loader))
except ForkedError as error:
    assert "spawn" in str(error)
    print("refused")
"""

FORKED_BUFFER = """
import multiprocessing, os, sys
from tdreplay.errors import ForkedError
from tdreplay_client import RemoteReplayBuffer

with RemoteReplayBuffer(sys.argv[1], timeout=5) as buffer:
    for _ in range(3):
        buffer.sample_batch(3)  # So that a call is held open.
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child():
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
    print("refused")
"""


@pytest.mark.parametrize("program", [FORKED_WORKER, FORKED_BUFFER], ids=["worker of a data loader", "buffer"])
def test_a_forked_process_says_so_instead_of_hanging(filled, program):
    """In a process of its own: gRPC's threads in a process that was forked may be late by seconds from then on."""
    done = completed("-c", program, filled)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
