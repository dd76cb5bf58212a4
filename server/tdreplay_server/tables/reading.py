"""Rows out of a storage, with their system fields."""

from __future__ import annotations

import torch

from tdreplay.memory import Rows
from tdreplay_server.storage.ring import Slots
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.tables.selection import Selection
from tdreplay_server.tables.system_values import COMPUTED, RowsRead, write_system_values

__all__ = ["gathered", "taken"]


def gathered(storage: RowStorage, slots: Slots, out: dict[str, Rows], *, threads: bool) -> None:
    """Copies the rows in `slots` into `out`: those of the fields that have bytes. `threads`: several may work on it."""
    computed = {name: out.pop(name) for name in COMPUTED if name in out}
    storage.gather(slots, out, threads=threads)
    if computed:
        write_system_values(RowsRead(storage.ring.row_ids(slots), slots), computed)


def taken(storage: RowStorage, selection: Selection) -> dict[str, torch.Tensor]:
    """Copies of all rows of `selection`, on the storage's device: field name -> tensor of shape [n, ...], in the selection's order of fields.

    The computed system fields are on the CPU.
    """
    slots = selection.slots(0, selection.rows)
    found = storage.select(slots, (field.name for field in selection.fields if field.name not in COMPUTED))
    rows = RowsRead(storage.ring.row_ids(slots), slots)
    found |= {name: torch.from_numpy(source(rows).copy()) for name, source in COMPUTED.items()}
    return {field.name: found[field.name] for field in selection.fields}
