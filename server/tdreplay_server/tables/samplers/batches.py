"""Batches side by side: each of them comes from its own generator alone, so it does not matter how many are drawn at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["each_batch"]

S = TypeVar("S", bound=np.generic)


def each_batch(generators: Sequence[np.random.Generator], numbers: Callable[[np.random.Generator], npt.NDArray[S]]) -> npt.NDArray[Any]:
    """What `numbers` makes of each generator, one after the other in one array."""
    drawn = [numbers(generator) for generator in generators]
    return drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
