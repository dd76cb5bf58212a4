"""Rows that were read, as the batches that a user of the buffer in process gets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.views import TableView
from tdreplay_server.tables.selection import Selection

__all__ = ["as_batch"]


def as_batch(columns: Mapping[str, torch.Tensor], selection: Selection, device: torch.device, view: TableView | None = None) -> TensorDict:
    """The rows of a selection, or what a view makes of their windows, as a TensorDict on `device`. `columns`: copies of the fields, by name."""
    moved = {name: column.to(device) for name, column in columns.items()}
    make = to_tensordict if view is None else view.made_of
    return make(moved, (selection.rows, *selection.format.row_shape), device, selection.format.dim_names)
