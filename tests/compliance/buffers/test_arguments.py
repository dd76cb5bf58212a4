"""Devices, times and numbers, however a user writes them: taken for what they mean, or refused at once with their value."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch

from conftest import numbers, rows
from tdreplay.errors import InvalidArgumentError, SlotIndexError
from tdreplay.limits import shown
from tdreplay_client import RemoteReplayBuffer

CUDA = torch.cuda.device_count()
NO_DEVICES = [f"cuda:{CUDA}", "cuda:99", "cuda:256", "cuda:-1", "banana", "", None, 3.5, *([] if CUDA else ["cuda", torch.device("cuda", 0)])]


@pytest.mark.parametrize("device", NO_DEVICES, ids=repr)
def test_a_device_that_is_not_there_is_refused_when_the_buffer_is_made(make_buffer, device):
    with pytest.raises(InvalidArgumentError, match=r"^device \("):
        make_buffer(4, device=device)


@pytest.mark.parametrize("device", ["banana", "cuda:256", f"cuda:{CUDA}"])
def test_a_storing_device_that_is_not_there_is_refused(make_buffer, device):
    with pytest.raises(InvalidArgumentError, match="storing_device"):
        make_buffer(4, storing_device=device)


TIMES = [None, float("inf"), 1e10, 10**400, np.float32(30), np.int64(30), torch.tensor(30.0), Decimal(30), 30]


@pytest.mark.parametrize("timeout", TIMES, ids=shown)
def test_a_timeout_may_be_any_number_above_0_or_without_end(address, table, timeout):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=timeout) as buffer:
        buffer.add_batch(rows(5))
        buffer.add(rows(1, 5)[0])
        with buffer.writer() as writer:
            writer.append(rows(1, 6)[0])
        for _ in range(3):
            assert len(buffer.sample_batch(4)) == 4
        with buffer.stream(4) as batches:
            assert len(next(batches)) == 4
        assert [numbers(batch) for batch in buffer.create_epoch_iterator(7)] == [list(range(7))]
        assert table in RemoteReplayBuffer.tables(address, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), True, "30", [30], 1j], ids=repr)
def test_what_is_no_time_is_refused(address, table, timeout):
    for use in (
        lambda: RemoteReplayBuffer(address, table=table, buffer_size=4, timeout=timeout),
        lambda: RemoteReplayBuffer.tables(address, timeout=timeout),
    ):
        with pytest.raises(InvalidArgumentError, match=r"^timeout \("):
            use()


@pytest.mark.parametrize("number", [np.int8, np.uint64, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_whole_numbers_may_come_from_numpy_and_torch(kind, make_buffer, number):
    buffer = make_buffer(number(10))
    buffer.add_batch(rows(10))
    assert len(buffer.sample_batch(number(4))) == len(buffer.sample_batch(number(4), seed=number(3))) == 4
    assert len(list(buffer.create_epoch_iterator(number(5), number(3), shuffle=np.True_, seed=number(1), drop_last=torch.tensor(False)))) == 6
    assert buffer.get_steps_and_iterator(number(2), number(0), number(5)) == 4
    assert buffer.calculate_num_batches(number(3)) == 4
    if kind.streams:
        with buffer.stream(number(4), prefetch=number(3)) as batches:
            assert len(next(batches)) == 4
    buffer.reset(number(7))
    assert buffer.buffer_size == 7


FAR = [2**63, -(2**63) - 1, 2**64, 2**70, -(2**70), 10**5000]


@pytest.mark.parametrize("far", FAR, ids=["2^63", "below int64", "2^64", "2^70", "-2^70", "5000 digits"])
def test_a_number_beyond_64_bits_is_refused_before_it_is_sent(kind, make_buffer, far):
    buffer = make_buffer(10)
    buffer.add_batch(rows(6))
    calls = [
        lambda: buffer.sample_batch(far),
        lambda: buffer.sample_batch(4, seed=far),
        lambda: buffer.create_epoch_iterator(far),
        lambda: buffer.create_epoch_iterator(4, far),
        lambda: buffer.create_epoch_iterator(4, seed=far, shuffle=True),
        lambda: buffer.get_next_batch(far),
        lambda: buffer.get_steps_and_iterator(far, 0, 4),
        lambda: buffer.get_steps_and_iterator(0, far, 4),
        lambda: buffer.calculate_num_batches(far),
        lambda: buffer.reset(far),
        lambda: make_buffer(far),
    ]
    if kind.streams:
        calls += [lambda: buffer.stream(far), lambda: buffer.stream(4, prefetch=far), lambda: buffer.stream(4, seed=far)]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call()
    for index in (far, [far], [0, far], [[far]]):
        with pytest.raises(SlotIndexError):
            buffer.sample_by_index(index)
    assert numbers(buffer.sample_all()) == list(range(6))
