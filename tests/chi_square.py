"""Whether what was drawn comes from exact probabilities."""

from __future__ import annotations

import numpy as np

FEWEST = 5.0
"""Rows that are drawn less often than this, on average, count together."""


def deviation(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """By how many standard deviations counts are off the probabilities of their cells: chi-square, made normal by the cube root.

    Wilson and Hilferty, The Distribution of Chi-Square, 1931. Counts where the probability is 0 are infinitely far off.
    """
    if counts[probabilities == 0].any():
        return float("inf")
    expected = counts.sum() * probabilities
    few = expected < FEWEST
    observed, expected = _joined(counts, few), _joined(expected, few)
    statistic, free = float(((observed - expected) ** 2 / expected).sum()), max(len(expected) - 1, 1)
    return float(((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5)


def _joined(values: np.ndarray, few: np.ndarray) -> np.ndarray:
    together = values[few].sum()
    return np.append(values[~few], together) if together > 0 else values[~few]
