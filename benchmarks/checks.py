"""Whether what came back is right. Imported in every participant's environment: NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.work import Columns, Live, Work, WrongRowsError

__all__ = ["check_samples", "check_uniform"]

BATCHES = 20
BINS = 16
WORST_CHI_SQUARE = 60.0
"""Of 16 bins: a uniform sampler is above it once in five million times."""


def check_samples(work: Work, live: Live, sample: Callable[[], Columns]) -> None:
    """Takes some random batches: each row must be as it was stored, and all rows drawn alike.

    Raises:
        WrongRowsError: they are not.
    """
    check_uniform(np.concatenate([work.check(sample(), live) for _ in range(BATCHES)]), live)


def check_uniform(numbers: NDArray[np.int64], live: Live) -> None:
    """A chi-square test that the live rows were drawn alike.

    Raises:
        WrongRowsError: they were not.
    """
    counts = np.bincount((numbers - live.first) * BINS // live.size, minlength=BINS)
    expected = np.diff(-(-np.arange(BINS + 1) * live.size // BINS)) * (len(numbers) / live.size)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    if chi_square > WORST_CHI_SQUARE:
        raise WrongRowsError(f"sampling is not uniform: chi-square {chi_square:.0f} of {BINS} bins, {counts.tolist()}")
