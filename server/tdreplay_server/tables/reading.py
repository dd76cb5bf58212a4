"""Rows out of a storage, with their system fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.fields import Field
from tdreplay.memory import Rows
from tdreplay_server.storage.ring import RowIds, Slots
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.tables.system_values import COMPUTED, RowsRead, write_system_values

__all__ = ["Drawn", "gathered", "taken", "write_drawn"]

Drawn: TypeAlias = "Mapping[str, npt.NDArray[Any]]"
"""The name of a drawn field -> its values for the rows that are read: shape [n]."""


def gathered(storage: RowStorage, ids: RowIds, drawn: Drawn, out: dict[str, Rows], *, threads: bool, places: Slots | None = None) -> None:
    """Copies the rows of these ids into `out`: those of the fields that have bytes.

    `threads`: several may work on it. `places`: where each row goes in `out`, ascending; None: one after the other.
    """
    slots = ids % storage.buffer_size
    known = {name: out.pop(name) for name in (*COMPUTED, *drawn) if name in out}
    storage.gather(slots, out, threads=threads, places=places)
    values = known if places is None else {name: np.empty(len(ids), target.dtype) for name, target in known.items()}
    write_system_values(RowsRead(ids, slots), {name: values[name] for name in COMPUTED if name in values})
    write_drawn(drawn, dict(values))
    if places is not None:
        for name, target in known.items():
            target[places] = values[name]


def write_drawn(drawn: Drawn, out: dict[str, Rows]) -> None:
    """Writes what is known of a draw into those of the fields of `out` that are of it, and takes them out of it."""
    for name, values in drawn.items():
        if name in out:
            out.pop(name).view(values.dtype)[:] = values


def taken(storage: RowStorage, ids: RowIds, drawn: Drawn, fields: Sequence[Field]) -> dict[str, torch.Tensor]:
    """Copies of the rows of these ids, on the storage's device: field name -> tensor of shape [n, ...], in the order of `fields`.

    The computed system fields and those of the draw are on the CPU.
    """
    slots = ids % storage.buffer_size
    found = storage.select(slots, (field.name for field in fields if field.name not in COMPUTED and field.name not in drawn))
    found |= {name: torch.from_numpy(values.copy()) for name, values in drawn.items()}
    rows = RowsRead(ids, slots)
    found |= {name: torch.from_numpy(source(rows).copy()) for name, source in COMPUTED.items()}
    return {field.name: found[field.name] for field in fields}
