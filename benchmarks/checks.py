"""Whether what came back is right. Imported in every participant's environment: NumPy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.work import Columns, Live, WrongRowsError

__all__ = ["BINS", "Checked", "Masses", "check_rows", "check_samples", "check_shares"]

Masses = NDArray[np.float64]

BATCHES = 20
BINS = 16
WORST_CHI_SQUARE = 60.0
"""Of 16 bins: a uniform sampler is above it once in five million times."""


class Checked(Protocol):
    """What knows the rows, or the steps."""

    def check(self, batch: Columns, live: Live, /) -> NDArray[np.int64]:
        """The numbers of those of a batch; a `WrongRowsError` where they are not as they were stored, or not live."""


def check_samples(work: Checked, live: Live, sample: Callable[[], Columns], masses: Masses | None = None) -> None:
    """Takes some random batches: each row must be as it was stored, and drawn as often as it should be.

    Args:
        work: the rows.
        live: those that can be drawn.
        sample: gives a batch.
        masses: of the sixteen parts of the live rows, in their order: how probable a row is in each, compared with those in another. None: all rows
            are drawn alike.

    Raises:
        WrongRowsError: they are not.
    """
    check_shares(check_rows(work, live, sample), live, np.ones(BINS) if masses is None else masses)


def check_rows(work: Checked, live: Live, sample: Callable[[], Columns]) -> NDArray[np.int64]:
    """The numbers of the rows of some random batches, each of which must be as it was stored.

    Raises:
        WrongRowsError: one is not.
    """
    return np.concatenate([work.check(sample(), live) for _ in range(BATCHES)])


def check_shares(numbers: NDArray[np.int64], live: Live, masses: Masses) -> None:
    """A chi-square test of how often the rows were drawn. `masses`: as in `check_samples`.

    Raises:
        WrongRowsError: they were drawn otherwise.
    """
    counts = np.bincount((numbers - live.first) * BINS // live.size, minlength=BINS)
    shares = np.diff(-(-np.arange(BINS + 1) * live.size // BINS)) * masses
    expected = shares * (len(numbers) / shares.sum())
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    if chi_square > WORST_CHI_SQUARE:
        raise WrongRowsError(f"sampling is not as it should be: chi-square {chi_square:.0f} of {BINS} bins, {counts.tolist()}")
