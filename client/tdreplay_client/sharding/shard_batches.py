"""Batches of one shard, as columns: what becomes of them is decided where they are joined."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from tensordict import TensorDict

from tdreplay.schema import Columns, DimNames
from tdreplay.sequences import IDS
from tdreplay.system_fields import INDEX, ROW_ID, TABLE_SIZE, WINDOW_BEFORE
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer, MadeBatch, PendingBatch

__all__ = ["ColumnTransfer", "ShardBatch", "Totals", "id_fields"]

STEP_IDS = {f"{IDS}.{field.name}": field.name for field in (INDEX, ROW_ID)}


class Totals(NamedTuple):
    """Of what a shard draws its batches, at the moment of a draw.

    Attributes:
        rows: The rows that can be drawn; with a view, the anchors.
        mass: The sum of their weights: how much of the whole buffer's draws falls on this shard, in proportion to the other shards' masses.
        least: The least of the weights above 0; 0: there is none.
    """

    rows: int
    mass: float
    least: float = 0.0

    @classmethod
    def of(cls, message: Any) -> Totals:
        """What a `DrawTotals` says."""
        return cls(message.rows, message.mass, message.least)


class ShardBatch(NamedTuple):
    """A batch, or a part of one, as it came from a shard, in the host's memory.

    Attributes:
        columns: Field name -> its values, of shape [n, ...]. With windows they are as on the wire: no view was made of them.
        batch_shape: The batch dimensions after the first, of a row that is itself a batch.
        dim_names: The names of the batch dimensions, as `to_tensordict` takes them.
        head: The fields of the message that completed the batch.
        came: When it came, as `time.monotonic` says it.
    """

    columns: Columns
    batch_shape: tuple[int, ...]
    dim_names: DimNames
    head: Any = None
    came: float = 0.0

    @property
    def rows(self) -> int:
        """The number of rows."""
        return min(map(len, self.columns.values()))

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def is_weighed(self) -> bool:
        """Whether the rows say how probable they were. Where they do not, fields of a user may have the names of what says it."""
        return getattr(self.head, TABLE_SIZE.name, 0) > 0

    @property
    def totals(self) -> Totals | None:
        """Of what it was drawn, where the shard says so."""
        says = self.head is not None and "totals" in self.head.DESCRIPTOR.fields_by_name and self.head.HasField("totals")
        return Totals.of(self.head.totals) if says else None

    def clone(self) -> ShardBatch:
        """A copy in memory of its own."""
        return self._replace(columns={name: column.clone() for name, column in self.columns.items()})


def id_fields(columns: Columns) -> Mapping[str, str]:
    """The columns of windows that have the row ids and the slots of each step, each with the name of the field that it is of."""
    return STEP_IDS if WINDOW_BEFORE.name in columns and columns.keys() >= STEP_IDS.keys() else {}


@dataclass(frozen=True)
class _PendingColumns(PendingBatch):
    """A batch of columns. Who takes it also gets what its message says."""

    def take(self) -> Any:
        return cast("ShardBatch", super().take())._replace(head=self.head)


class ColumnTransfer(DeviceTransfer):
    """Leaves batches in the host's memory, as columns, and makes no view of them: each batch that is taken is a `ShardBatch`."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), make=cast("MadeBatch", _columns))

    def for_view(self, view: TableView | None) -> DeviceTransfer:
        """The same: the view is made of the whole batch, when the parts are joined."""
        return self

    def bring(self, columns: Columns, batch_size: tuple[int, ...], dim_names: DimNames = ()) -> PendingBatch:
        return _PendingColumns(super().bring(columns, batch_size, dim_names).batch)


def _columns(columns: Columns, batch_size: tuple[int, ...], _device: torch.device, dim_names: DimNames = ()) -> TensorDict:
    """A batch that is made later. Its type is that of a finished batch for the sake of `DeviceTransfer`, which only passes it on."""
    return cast("TensorDict", ShardBatch(columns, batch_size[1:], dim_names, came=time.monotonic()))
