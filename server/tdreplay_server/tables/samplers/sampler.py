"""What every sampler does."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tdreplay_server.durability.row_listeners import RowListener
from tdreplay_server.storage.ring import Ring, RowIds

__all__ = ["Draw", "Sampler"]


class Draw(NamedTuple):
    """The rows of one batch.

    Attributes:
        ids: Their row ids, in the order of the batch: int64 of shape [n]. The caller owns the array.
        probabilities: How probable each row was: float64 of shape [n]. None where all rows were equally probable.
    """

    ids: RowIds
    probabilities: npt.NDArray[np.float64] | None = None


class Sampler(RowListener, Protocol):
    """Chooses the rows of batches. Each table has one of its own.

    `inserted` and `evicted` come from the row log, under the table's exclusive lock. `draw` comes under its shared lock, from several threads at
    once. So a sampler needs no lock of its own, as long as `draw` changes nothing.

    Nothing of a sampler is kept on the disk: when a table is opened, the sampler learns the ids of its rows by `inserted`.
    """

    def draw(self, n: int, ring: Ring, rng: np.random.Generator) -> Draw:
        """`n` rows that are live in `ring`, which has at least one. The same rows and a generator in the same state give the same draw."""
