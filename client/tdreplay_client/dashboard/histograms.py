"""Histograms of numbers, with the exact figures of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay_client.dashboard.numbers import as_json

__all__ = ["BINS", "histogram"]

BINS = 32
"""The bars of a histogram, at most."""

MAX_EXACT = 2.0**50
"""Up to here a half more or less can be told from a whole number."""

FIGURES = ("min", "max", "mean", "std", "sum")


def histogram(values: npt.NDArray[Any]) -> dict[str, Any]:
    """How often values lie where, as JSON values.

    Whole numbers that lie close together get a bar each. NaN and infinities are counted apart.

    Args:
        values: numbers or booleans of shape [n].

    Returns:
        ``count``, ``not_finite``, and of the finite values ``min``, ``max``, ``mean``, ``std``, ``sum``; ``counts`` of the bars, and their ``edges``,
        one more. Without a finite value there is neither bar nor figure.
    """
    numbers = values.astype(np.float64).reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    said = {"count": len(numbers), "not_finite": len(numbers) - len(finite)}
    if not len(finite):
        return {**said, "edges": [], "counts": []}
    whole = _are_whole(finite, values.dtype.kind in "biu")
    counts, edges = np.histogram(finite, _edges(finite, whole=whole))
    with np.errstate(over="ignore", invalid="ignore"):
        figures = {name: as_json(float(getattr(finite, name)())) for name in FIGURES}
    return {**said, **figures, "edges": edges.tolist(), "counts": counts.tolist(), "whole": whole}


def _are_whole(finite: npt.NDArray[np.float64], typed: bool) -> bool:
    """Whether each whole number may have a bar of its own. `typed`: the values have a dtype of whole numbers."""
    if max(abs(finite.min()), abs(finite.max())) >= MAX_EXACT:
        return False
    return typed or bool(finite.max() - finite.min() < BINS and np.all(finite == np.rint(finite)))


def _edges(finite: npt.NDArray[np.float64], *, whole: bool) -> npt.NDArray[np.float64]:
    least, greatest = float(finite.min()), float(finite.max())
    if whole:
        width = max(1, -(-int(greatest - least + 1) // BINS))
        bars = -(-int(greatest - least + 1) // width)
        return least - 0.5 + width * np.arange(bars + 1, dtype=np.float64)
    if greatest - least <= abs(greatest) * 1e-12:  # One value: a bar around it.
        margin = max(abs(greatest) * 1e-6, 0.5 if abs(greatest) < 1e6 else 0.0)
        return np.array([least - margin, greatest + margin])
    halves: npt.NDArray[np.float64] = np.linspace(least / 2, greatest / 2, BINS + 1)
    return 2 * halves  # The difference of two large numbers may be infinite.
