"""Which rows a read takes, and in which order: decided once, read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tdreplay.api import EpochQuery
from tdreplay.fields import Field
from tdreplay.schema import DimNames
from tdreplay_server.storage.ring import Ring, Slots
from tdreplay_server.tables.orders import random_order

__all__ = ["Selection", "epoch_orders"]

POSITIONS = 1 << 15
"""Of an order that are computed at once."""


@dataclass(frozen=True)
class Selection:
    """The rows of one batch.

    Attributes:
        fields: what is read of them.
        row_shape: the batch dimensions after the first.
        rows: how many they are.
        slots: (start, stop) -> the slots of the batch's rows from start to stop, as many as they are.
        generation: of the table when the rows were chosen; they may be read while it is the same.
        dim_names: of the batch dimensions; () where none has one.
    """

    fields: tuple[Field, ...]
    row_shape: tuple[int, ...]
    rows: int
    slots: Callable[[int, int], Slots]
    generation: int
    dim_names: DimNames = ()


def epoch_orders(query: EpochQuery, ring: Ring) -> Iterator[Slots]:
    """The slots of each batch of `query` over the live rows of `ring`: batch_size of them, or fewer at an epoch's end."""
    generator = np.random.default_rng(query.seed)
    whole = ring.size // query.batch_size * query.batch_size
    end = whole if query.drop_last else ring.size
    step = query.batch_size * max(1, POSITIONS // query.batch_size)
    for _ in range(query.n_epochs if end else 0):
        order = random_order(ring.size, generator) if query.shuffle else np.arange
        for start in range(0, end, step):
            slots = ring.in_slot_order(order(start, min(start + step, end)))
            yield from (slots[first : first + query.batch_size] for first in range(0, len(slots), query.batch_size))
