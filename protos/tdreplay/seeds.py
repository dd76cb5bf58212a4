"""Seeds that follow from a seed."""

from __future__ import annotations

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(seed: int, number: int) -> int:
    """The seed number `number` of those that follow from `seed`, from 0 to 2^63 - 1: what is drawn by one of them tells nothing of the others."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)
