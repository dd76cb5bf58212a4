"""Trees over the slots of a table: every node is computed from a block of `FAN_OUT` children. What such trees share.

A level of a tree is an array of shape [blocks, FAN_OUT]. Work goes over blocks that are turned: shape [FAN_OUT, n], the first children of all blocks,
then the second ones, and so on. NumPy then works on long rows. Each step is elementwise: the bits of a result do not depend on the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FAN_OUT", "blocks_of", "folded", "level_sizes", "turned"]

FAN_OUT = 16
TOP = 4096
"""The most nodes of the highest level. It is searched as a whole."""

CHUNK = 4096
"""So many blocks at a time stay in the processor's cache."""


def level_sizes(leaves: int) -> list[int]:
    """How many blocks each level has, from the leaves up."""
    sizes = [-(-leaves // FAN_OUT)]
    while sizes[-1] * FAN_OUT > TOP:
        sizes.append(-(-sizes[-1] // FAN_OUT))
    return sizes


def turned(blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy of blocks of shape [n, FAN_OUT], as an array of shape [FAN_OUT, n]."""
    return np.ascontiguousarray(blocks.T)


def folded(values: npt.NDArray[Any], operation: np.ufunc) -> npt.NDArray[Any]:
    """What `operation` makes of each column of `values`, of shape [FAN_OUT, n]: halves with halves, in the same order for every n. Shape [n]."""
    while len(values) > 1:
        half = len(values) // 2
        values = operation(values[:half], values[half:])
    folded: npt.NDArray[Any] = values[0]
    return folded


def blocks_of(start: int, stop: int) -> Iterator[slice]:
    """The blocks that hold the children from start to stop, in slices of moderate length."""
    first, last = start // FAN_OUT, -(-stop // FAN_OUT)
    return (slice(at, min(at + CHUNK, last)) for at in range(first, last, CHUNK))
