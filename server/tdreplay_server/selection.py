"""Which rows a read takes, and in which order: decided once, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tdreplay.api import EpochQuery
from tdreplay.schema import Field
from tdreplay_server.ring import Ring, Slots

__all__ = ["Selection", "epoch_orders"]


@dataclass(frozen=True)
class Selection:
    """The rows of one batch.

    Attributes:
        fields: what is read of them.
        row_shape: the batch dimensions after the first.
        rows: how many they are.
        slots: (start, stop) -> the slots of the batch's rows from start to stop, as many as they are.
        generation: of the table when the rows were chosen; they may be read while it is the same.
    """

    fields: tuple[Field, ...]
    row_shape: tuple[int, ...]
    rows: int
    slots: Callable[[int, int], Slots]
    generation: int


def epoch_orders(query: EpochQuery, ring: Ring) -> Iterator[Slots]:
    """The slots of each batch of `query` over the live rows of `ring`: batch_size of them, or fewer at an epoch's end."""
    generator = np.random.default_rng(query.seed)
    whole = ring.size // query.batch_size * query.batch_size
    end = whole if query.drop_last else ring.size
    # int32 where it does, to take half the memory: 40 MB for a table of 10 million rows.
    dtype = np.int32 if ring.size < 1 << 31 else np.int64
    for _ in range(query.n_epochs):
        order = generator.permutation(np.arange(ring.size, dtype=dtype)) if query.shuffle else None
        for start in range(0, end, query.batch_size):
            stop = min(start + query.batch_size, end)
            positions = np.arange(start, stop) if order is None else order[start:stop].astype(np.int64)
            yield ring.in_slot_order(positions)
