"""Rows out of a storage, with the two fields that every batch gets: the slots, and the rows' ids."""

from __future__ import annotations

import numpy as np
import torch

from tdreplay.memory import Rows
from tdreplay.schema import INDEX, ROW_ID
from tdreplay_server.storage.ring import Slots
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.tables.selection import Selection

__all__ = ["gathered", "taken"]


def gathered(storage: RowStorage, slots: Slots, out: dict[str, Rows], *, threads: bool) -> None:
    """Copies the rows in `slots` into `out`: those of the fields that have bytes. `threads`: several may work on it."""
    index, row_id = out.pop(INDEX, None), out.pop(ROW_ID, None)
    storage.gather(slots, out, threads=threads)
    if index is not None:
        index.view(np.int64)[:] = slots
    if row_id is not None:
        row_id.view(np.int64)[:] = storage.ring.row_ids(slots)


def taken(storage: RowStorage, selection: Selection) -> dict[str, torch.Tensor]:
    """Copies of all rows of `selection`, on the storage's device: field name -> tensor of shape [n, ...], in the selection's order of fields."""
    slots, names = selection.slots(0, selection.rows), [field.name for field in selection.fields]
    found = storage.select(slots, (name for name in names if name not in (INDEX, ROW_ID)))
    found |= {INDEX: torch.from_numpy(slots), ROW_ID: torch.from_numpy(storage.ring.row_ids(slots))}
    return {name: found[name] for name in names}
