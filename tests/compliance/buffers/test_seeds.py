"""Random batches that can be drawn again: the same seed and the same rows give the same batches, in every kind of buffer."""

from __future__ import annotations

import pytest
import torch

from conftest import numbers, rows
from tdreplay.errors import InvalidArgumentError

SEED = (1 << 63) - 1


def test_a_seed_gives_the_same_rows_as_in_process(make_buffer, in_process):
    buffer, local = make_buffer(100), in_process(100)
    for filled in (buffer, local):
        filled.add_batch(rows(100))
    assert numbers(buffer.sample_batch(16, seed=7)) == numbers(local.sample_batch(16, seed=7))


def test_the_draws_depend_on_the_order_of_rows_and_not_on_their_ids(make_buffer):
    fresh, wrapped = make_buffer(100), make_buffer(100)
    fresh.add_batch(rows(100))
    wrapped.add_batch(rows(37))
    wrapped.add_batch(rows(100))
    assert numbers(wrapped.sample_batch(64, seed=1)) == numbers(fresh.sample_batch(64, seed=1))
    wrapped.reset()
    wrapped.add_batch(rows(100))
    assert numbers(wrapped.sample_batch(64, seed=1)) == numbers(fresh.sample_batch(64, seed=1))


def test_a_seeded_buffer_draws_the_batches_of_its_seed_in_turn(make_buffer):
    one, other = make_buffer(100, seed=SEED), make_buffer(100, seed=SEED)
    for buffer in (one, other):
        buffer.add_batch(rows(100))
    first = numbers(one.sample_batch(32))
    drawn = [first, numbers(one.get_next_batch(32)), numbers(one.sample_random(32))]
    assert drawn == [numbers(other.sample_batch(32)) for _ in range(3)]
    assert len({tuple(batch) for batch in drawn}) == 3
    assert numbers(one.sample_batch(32, seed=SEED)) == first


def test_a_seeded_buffer_shuffles_its_epochs_in_the_same_orders(make_buffer):
    def orders() -> list[list[int]]:
        buffer = make_buffer(100, seed=3)
        buffer.add_batch(rows(100))
        return [numbers(batch) for _ in range(2) for batch in buffer.create_epoch_iterator(100, shuffle=True)]

    assert orders() == orders()
    assert len({tuple(order) for order in orders()}) == 2


def test_without_a_seed_batches_differ(make_buffer):
    buffer = make_buffer(100)
    buffer.add_batch(rows(100))
    assert not torch.equal(buffer.sample_batch(64)["action"], buffer.sample_batch(64)["action"])


@pytest.mark.parametrize("seed", [-1, 1 << 63, 10**5000, 1.5, "1", True], ids=["negative", "65 bits", "huge", "float", "text", "bool"])
def test_a_seed_is_a_whole_number_of_63_bits(make_buffer, seed):
    buffer = make_buffer(10)
    buffer.add_batch(rows(10))
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        buffer.sample_batch(4, seed=seed)
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        buffer.create_epoch_iterator(4, shuffle=True, seed=seed)
    with pytest.raises(InvalidArgumentError, match=r"seed .* must be a whole number from 0"):
        make_buffer(10, seed=seed)
