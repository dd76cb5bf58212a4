"""Rows that were read, as the batches that a user of the buffer in process gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.progress import Progress
from tdreplay.views import TableView
from tdreplay_server.tables.selection import PartOfRows, Selection
from tdreplay_server.tables.table import Table

__all__ = ["as_batch", "taken_in_parts"]

PART_BYTES = 32 << 20
"""The bytes of rows between two reports of progress."""


def as_batch(columns: Mapping[str, torch.Tensor], selection: Selection, device: torch.device, view: TableView | None = None) -> TensorDict:
    """The rows of a selection, or what a view makes of their windows, as a TensorDict on `device`. `columns`: copies of the fields, by name."""
    moved = {name: column.to(device) for name, column in columns.items()}
    make = to_tensordict if view is None else view.made_of
    return make(moved, (selection.rows, *selection.format.row_shape), device, selection.format.dim_names)


def taken_in_parts(table: Table, selection: Selection, progress: Progress) -> dict[str, torch.Tensor]:
    """As `Table.take`, in parts, after each of which `progress` is told of the rows.

    Raises:
        TableChangedError: as `Table.take`.
    """
    step = max(1, PART_BYTES // max(1, selection.format.row_bytes))
    made: dict[str, torch.Tensor] = {}
    for start in range(0, selection.rows, step):
        stop = min(start + step, selection.rows)
        part = table.take(replace(selection, rows=stop - start, chosen=PartOfRows(selection.chosen, start)))
        made = made or {name: column.new_empty((selection.rows, *column.shape[1:])) for name, column in part.items()}
        for name, column in part.items():
            made[name][start:stop] = column
        progress(stop, selection.rows)
    return made
