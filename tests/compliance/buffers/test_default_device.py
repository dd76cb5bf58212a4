"""A default device that the user set is for what the user makes: rows, batches and the buffer's own memory do not go there."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from compliance.kinds import MakeBuffer
from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay_client import RemoteReplayBuffer


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Where tensors have no memory: what lands there by mistake is an error, as on a GPU that is not there."""
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(before)


@pytest.fixture
def given() -> list:
    """Rows, made while the default device is the CPU."""
    return [rows(20, first) for first in (0, 20)]


@pytest.fixture
def buffer(make_buffer: MakeBuffer, given, elsewhere) -> BaseReplayBuffer:
    made = make_buffer(40)
    made.add_batch(given[0])
    for row in given[1]:
        made.add(row)
    return made


READS = {
    "sample_all": lambda b: b.sample_all(),
    "random": lambda b: b.sample_batch(40),
    "random again": lambda b: [b.sample_batch(40) for _ in range(3)][-1],
    "seeded": lambda b: b.sample_batch(40, seed=3),
    "list": lambda b: b.sample_by_index([0, 1, -1]),
    "array": lambda b: b.sample_by_index(np.arange(3)),
    "range": lambda b: b.sample_by_index(range(40)),
    "slice": lambda b: b.sample_by_index(slice(3, 9)),
    "mask": lambda b: b.sample_by_index([True] * 40),
    "two dimensions": lambda b: b.sample_by_index([[0, 1], [2, 3]])[0],
    "epoch": lambda b: next(b.create_epoch_iterator(40, shuffle=True)),
    "next batch": lambda b: b.get_next_batch(40),
}


@pytest.mark.parametrize("read", READS)
def test_batches_come_to_the_device_of_the_buffer(buffer, read):
    batch = READS[read](buffer)
    assert batch.device == torch.device("cpu")
    assert {leaf.device.type for leaf in batch.values(include_nested=True, leaves_only=True)} == {"cpu"}
    assert set(numbers(batch)) <= set(range(40))


def test_a_stream_and_a_writer_do_not_mind_either(address, name_table, given, elsewhere):
    for transport in ("grpc", "auto"):
        with RemoteReplayBuffer(address, table=name_table(address), buffer_size=40, transport=transport) as buffer:
            with buffer.writer() as writer:
                writer.extend(given[0])
                for row in given[1]:
                    writer.append(row)
            with buffer.stream(32) as batches:
                assert {int(n) for _ in range(30) for n in numbers(next(batches))} == set(range(40))


def test_a_large_batch_is_put_together_on_the_cpu(make_buffer, elsewhere):
    buffer = make_buffer(8)
    wide = TensorDict({"x": torch.arange(8, dtype=torch.uint8, device="cpu").unsqueeze(1).repeat(1, 1 << 20)}, [8])
    buffer.add_batch(wide)
    assert torch.equal(buffer.sample_all()["x"], wide["x"])
    buffer.reset()
    buffer.add_batch(wide[:3])
    assert torch.equal(buffer.sample_by_index([2])["x"], wide["x"][2:3])


def test_the_same_in_another_thread(buffer):
    failed: list[BaseException] = []

    def read() -> None:
        try:
            with torch.device("meta"):
                numbers(buffer.sample_batch(5))
                numbers(buffer.sample_all())
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(30)
    assert not failed
