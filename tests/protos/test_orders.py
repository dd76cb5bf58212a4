"""Random orders: every number once, no order the same, and each the same for its seed and number."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from tdreplay.orders import RandomOrder

SIZES = (1, 2, 3, 17, 1000, 1 << 20, (1 << 20) + 1, (3 << 20) + 7, 1 << 22, (1 << 22) + 1)


def order(size: int, seed: int, number: int = 0) -> np.ndarray:
    return RandomOrder.keyed(size, seed, number).at(np.arange(size))


@pytest.mark.parametrize("size", SIZES)
def test_every_number_comes_once_in_an_order_of_its_seed_and_number(size):
    found = order(size, 1)
    assert np.array_equal(np.sort(found), np.arange(size))
    if size > 16:
        assert not np.array_equal(found, order(size, 2))
        assert not np.array_equal(found, order(size, 1, 1))
    assert np.array_equal(found, order(size, 1))


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, (3 << 20) + 7])
def test_an_order_looks_random(size):
    found = order(size, 3).astype(float)
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 0.01
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    counts = np.histogram(found[: size // 4], 64, (0, size))[0]
    expected = size / 4 / 64
    assert ((counts - expected) ** 2 / expected).sum() < 150  # Chi-squared of 63 degrees: above 130 in one of a million.
    assert 0.7 < np.mean(np.abs(np.diff(found)) > size / 10) < 0.9  # 0.81 of random pairs.


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_orders_of_few_rows_are_all_about_as_frequent(size):
    counts = Counter(tuple(order(size, seed)) for seed in range(6000))
    all_orders = list(itertools.permutations(range(size)))
    expected = 6000 / len(all_orders)
    assert len(counts) == len(all_orders)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 2 * len(all_orders) + 25


def test_an_order_of_more_numbers_than_any_memory_holds():
    drawn = RandomOrder.keyed(1 << 61, 0, 0)
    middle = 1 << 60
    found = drawn.at(np.arange(middle - 500, middle + 500))
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < 1 << 61
    assert np.array_equal(found[500:], drawn.at(np.arange(middle, middle + 500)))


def test_an_order_of_many_numbers_starts_as_soon_as_one_of_few():
    def seconds(size: int, seed: int) -> float:
        start = time.perf_counter()
        RandomOrder.keyed(size, seed, 0).at(np.arange(4096))
        return time.perf_counter() - start

    pairs = [(seconds(10**4, seed), seconds(10**7, seed)) for seed in range(200)]  # In turns: what else the machine does slows both.
    few, many = np.quantile(pairs, 0.1, axis=0)
    assert many < 1.5 * few
