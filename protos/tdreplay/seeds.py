"""Seeds that are derived from another seed."""

from __future__ import annotations

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(seed: int, number: int) -> int:
    """The derived seed number `number` of `seed`, from 0 to 2^63 - 1. What one of them draws is independent of what the others draw."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]) >> 1
