"""Random orders: every position once, no order the same, and each the same for its seed."""

from __future__ import annotations

import numpy as np
import pytest

from tdreplay.api import EpochQuery
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.orders import LISTED, random_order
from tdreplay_server.tables.selection import epoch_orders

SIZES = (1, 2, 1000, LISTED, LISTED + 1, 3 * LISTED + 7, 4 * LISTED, 4 * LISTED + 1)


def order(size: int, seed: int) -> np.ndarray:
    drawn = random_order(size, np.random.default_rng(seed))
    return np.concatenate([drawn(start, min(start + 50_000, size)) for start in range(0, size, 50_000)])


@pytest.mark.parametrize("size", SIZES)
def test_every_position_comes_once_in_an_order_of_its_seed(size):
    found = order(size, 1)
    assert np.array_equal(np.sort(found), np.arange(size))
    if size > 2:
        assert not np.array_equal(found, order(size, 2))
    assert np.array_equal(found, order(size, 1))


@pytest.mark.parametrize("size", [LISTED, LISTED + 1, 3 * LISTED + 7])
def test_an_order_looks_random(size):
    found = order(size, 3).astype(float)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    counts = np.histogram(found[: size // 4], 64, (0, size))[0]
    expected = size / 4 / 64
    assert ((counts - expected) ** 2 / expected).sum() < 150  # Chi-squared of 63 degrees: above 130 in one of a million.
    assert 0.7 < np.mean(np.abs(np.diff(found)) > size / 10) < 0.9  # 0.81 of random pairs.


def test_an_order_of_more_positions_than_any_memory_holds():
    drawn = random_order(1 << 61, np.random.default_rng(0))
    found = drawn((1 << 60) - 500, (1 << 60) + 500)
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < 1 << 61
    assert np.array_equal(found[500:], drawn(1 << 60, (1 << 60) + 500))


@pytest.mark.parametrize("size", [7, LISTED + 5])
@pytest.mark.parametrize("batch_size", [3, 40_000])
def test_the_batches_of_an_epoch_hold_every_row_once(size, batch_size):
    batches = list(epoch_orders(EpochQuery(batch_size, 1, shuffle=True, seed=5), Ring(size + 2, 4, size + 4)))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches) == -(-size // batch_size)
    live = np.arange(4, size + 4) % (size + 2)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.sort(live))
