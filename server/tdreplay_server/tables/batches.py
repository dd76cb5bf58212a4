"""Rows that were read, as the batches that a user of the buffer in process gets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay_server.tables.selection import Selection

__all__ = ["as_batch"]


def as_batch(columns: Mapping[str, torch.Tensor], selection: Selection, device: torch.device) -> TensorDict:
    """The rows of a selection as a TensorDict on `device`. `columns`: copies of the rows, by the names of their fields."""
    moved = {name: column.to(device) for name, column in columns.items()}
    return to_tensordict(moved, (selection.rows, *selection.format.row_shape), device, selection.format.dim_names)
