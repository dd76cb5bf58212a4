"""The priorities of the rows that are drawn by them. Imported in every participant's environment: NumPy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.checks import BINS
from benchmarks.work import BATCH, Live

__all__ = ["ALPHA", "BETA", "MASSES", "new_priorities", "priorities"]

ALPHA, BETA = 0.6, 0.4
MASSES: NDArray[np.float64] = np.power(np.arange(1.0, BINS + 1), ALPHA)
"""How probable a row is in each of the sixteen parts of the rows, as `check_samples` takes it."""
UPDATES = 64


def priorities(live: Live) -> NDArray[np.float64]:
    """The priority of each row, in their order: 1 in the first sixteenth of the rows, and 16 in the last."""
    return np.asarray(1 + np.arange(live.size) * BINS // live.size, np.float64)


def new_priorities() -> list[NDArray[np.float64]]:
    """What a learner might send for its batches: some arrays of shape [256], of values from 0 to 16."""
    return list(np.random.default_rng(1).random((UPDATES, BATCH)) * BINS)
