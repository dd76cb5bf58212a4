"""The arithmetic of a batch over many shards, against what is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.fan_out import FanOut, Latencies, asked_shards, predicted, quantiles

BATCHES = 4000


def evenly(rng: np.random.Generator) -> Latencies:
    """Calls that take from 0 to 1 s, all equally often."""
    return Latencies({1000: rng.random(20_000).tolist()})


@pytest.mark.parametrize("shards", [1, 2, 10, 50])
def test_a_batch_takes_as_long_as_the_slowest_of_its_shards(shards):
    rng = np.random.default_rng(shards)
    median, high = quantiles(predicted(evenly(rng), shards, FanOut(rows=1000), BATCHES, rng))
    assert median == pytest.approx(0.5 ** (1 / shards), abs=0.03)
    assert high == pytest.approx(0.99 ** (1 / shards), abs=0.01)


def test_a_shard_without_a_row_is_not_asked():
    rng = np.random.default_rng(0)
    once = predicted(Latencies({1: [1.0]}), 1000, FanOut(rows=1, client_seconds=5.0), 10, rng)
    assert once.tolist() == [1.0] * 10
    assert asked_shards(256, 1000) == pytest.approx(226, abs=1)
    assert asked_shards(256, 1) == 1


def test_what_the_client_does_for_each_call_adds_up():
    rng = np.random.default_rng(0)
    assert predicted(Latencies({500: [1.0]}), 10, FanOut(rows=500, client_seconds=0.5), 1, rng) == pytest.approx([9 * 0.5 + 1.0])


def test_shards_on_the_same_cores_share_them():
    rng = np.random.default_rng(0)
    assert predicted(Latencies({500: [1.0]}), 10, FanOut(rows=500, call_seconds=0.8, cores=2), 1, rng) == pytest.approx([4.0])


def test_a_call_takes_as_long_as_one_of_the_next_larger_size():
    rng = np.random.default_rng(0)
    known = Latencies({1: [1.0], 10: [2.0], 100: [3.0]})
    assert known.drawn(np.array([1, 2, 10, 11, 100, 500]), rng).tolist() == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
