"""How many rows a shard is asked for, so that it is asked for as many again and again."""

from __future__ import annotations

import numpy as np

from tdreplay_client.sharding.spare_rows import SPARE_BYTES, SpareRows


def test_the_size_seldom_changes_while_the_rows_vary_as_a_draw_does():
    spare, generator = SpareRows(), np.random.default_rng(1)
    spare.note("shard", 100)
    needed = generator.binomial(256, 0.5, 500).tolist()
    sizes = [spare.size("shard", rows) for rows in needed]
    assert all(size >= rows for size, rows in zip(sizes, needed, strict=True))
    assert len(set(sizes)) <= 3


def test_large_rows_and_rows_of_unknown_size_are_asked_for_as_they_are_needed():
    spare = SpareRows()
    assert spare.size("shard", 100) == 100
    spare.note("shard", SPARE_BYTES)
    assert spare.size("shard", 100) == 100


def test_a_size_that_is_far_too_large_is_given_up():
    spare = SpareRows()
    spare.note("shard", 10)
    assert spare.size("shard", 1000) > 1000
    assert spare.size("shard", 10) < 40
