"""The parts of a batch that came from several shards, made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.errors import SchemaError
from tdreplay.memory import as_rows, rows_of
from tdreplay.schema import Columns
from tdreplay.shard_ids import sharded_row_ids
from tdreplay.system_fields import INDEX, ROW_ID
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.slots import whole_slots

__all__ = ["Part", "joined"]


class Part(NamedTuple):
    """Rows of a batch that one shard gave.

    Attributes:
        batch: The rows.
        number: Of the shard in its cluster.
        place: Of the shard among those of the buffer, from 0 up.
        start: The first of its rows that belong to this batch.
        stop: The row after the last one of these.
    """

    batch: ShardBatch
    number: int
    place: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """The number of rows that it gives."""
        return self.stop - self.start


def joined(parts: Sequence[Part], shards: int, order: npt.NDArray[np.int64] | None, transfer: DeviceTransfer) -> TensorDict:
    """The batch that the parts make, with the ids and the slots of the whole buffer, on the device of `transfer`, which also makes a view of it.

    Args:
        parts: At least one, each with a row.
        shards: How many shards the buffer has: a slot depends on it.
        order: Where each row goes: row number k of all parts, one after the other, becomes row ``order[k]``. None: they stay as they are.
        transfer: Brings the batch to its device.

    Raises:
        SchemaError: the parts have other fields.
    """
    first = parts[0].batch
    rows = sum(part.rows for part in parts)
    columns = {name: transfer.memory((rows, *column.shape[1:]), column.dtype) for name, column in first.columns.items()}
    start = 0
    for part in parts:
        _check_same(first, part)
        places = slice(start, start + part.rows) if order is None else order[start : start + part.rows]
        for name, column in part.batch.columns.items():
            _put(columns[name], places, _of_whole(name, column[part.start : part.stop], part, shards))
        start += part.rows
    return transfer.bring(columns, (rows, *first.batch_shape), first.dim_names).take()


def _check_same(first: ShardBatch, part: Part) -> None:
    mine, theirs = _kinds(first.columns), _kinds(part.batch.columns)
    if mine != theirs:
        differing = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        raise SchemaError(f"the shards are no one buffer: their rows differ in the fields {differing}, and those of shard {part.number} are others")


def _kinds(columns: Columns) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}


def _of_whole(name: str, column: torch.Tensor, part: Part, shards: int) -> torch.Tensor:
    """The values of a field of a shard as those of the whole buffer. In windows -1 stands for a step that is not there."""
    if name == ROW_ID.name:
        return torch.where(column < 0, column, sharded_row_ids(column, part.number))
    if name == INDEX.name:
        return torch.where(column < 0, column, whole_slots(column, part.place, shards))
    return column


def _put(target: torch.Tensor, places: slice | npt.NDArray[np.int64], column: torch.Tensor) -> None:
    """Copies rows to their places."""
    if column.nbytes:
        as_rows(target)[places] = rows_of(column)
