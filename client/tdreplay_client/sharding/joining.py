"""The parts of a batch that came from several shards, made one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.errors import SchemaError
from tdreplay.memory import as_rows, rows_of
from tdreplay.schema import Columns
from tdreplay.shard_ids import sharded_row_ids
from tdreplay.system_fields import INDEX, LOST_SHARDS, PROBABILITY, ROW_ID
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.shard_batches import ShardBatch, id_fields
from tdreplay_client.sharding.slots import whole_slots

__all__ = ["Memory", "Part", "check_same", "joined", "joined_columns", "with_lost_shards"]

Memory: TypeAlias = "Callable[[tuple[int, ...], torch.dtype], torch.Tensor]"
"""Shape and dtype -> memory of the host for a column."""


class Part(NamedTuple):
    """Rows of a batch that one shard gave.

    Attributes:
        batch: The rows.
        number: Of the shard in its cluster.
        place: Of the shard among those of the buffer, from 0 up.
        start: The first of its rows that belong to this batch.
        stop: The row after the last one of these.
        share: How probable it was that a row of the batch came from this shard, where it was drawn: its ``probability`` is multiplied by it.
    """

    batch: ShardBatch
    number: int
    place: int
    start: int
    stop: int
    share: float = 1.0

    @property
    def rows(self) -> int:
        """The number of rows that it gives."""
        return self.stop - self.start


def joined(
    parts: Sequence[Part],
    shards: int,
    order: npt.NDArray[np.int64] | None,
    transfer: DeviceTransfer,
    drawn: Mapping[str, float] | None = None,
    lost: int | None = None,
) -> TensorDict:
    """The batch that the parts make, with the ids and the slots of the whole buffer, on the device of `transfer`, which also makes a view of it.

    Args:
        parts: At least one, each with a row. A single one that is a whole batch is taken over: it is not copied.
        shards: How many shards the buffer has: a slot depends on it.
        order: Where each row goes: row number k of all parts, one after the other, becomes row ``order[k]``. None: they stay as they are.
        transfer: Brings the batch to its device.
        drawn: What is the same for all rows of the draw: ``table_size`` and ``min_probability`` of the whole buffer. They replace what the parts say,
            where these say it.
        lost: How many shards were not drawn from, which the batch says in ``lost_shards``. None: it does not say it.

    Raises:
        SchemaError: the parts have other fields.
    """
    first, rows = parts[0].batch, sum(part.rows for part in parts)
    same = {} if drawn is None or not first.is_weighed else drawn
    whole = joined_columns(parts, shards, order, transfer.memory, same)
    whole |= {name: torch.full((rows,), value, dtype=first.columns[name].dtype, device="cpu") for name, value in same.items()}
    batch = transfer.bring(whole, (rows, *first.batch_shape), first.dim_names).take()
    return batch if lost is None else with_lost_shards(batch, lost)


def with_lost_shards(batch: TensorDict, lost: int) -> TensorDict:
    """The same batch, which says how many shards were not drawn from, unless its rows have a field of that name.

    A view must be made before: it would take the field for one of its steps.
    """
    if LOST_SHARDS not in batch.keys():  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        batch.set(LOST_SHARDS, torch.full(batch.batch_size, lost, dtype=torch.int64, device=batch.device))
    return batch


def joined_columns(
    parts: Sequence[Part], shards: int, order: npt.NDArray[np.int64] | None, memory: Memory, left_out: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The columns of `joined`, in the host's memory, without those that are left out. Where rows are copied, it is into what `memory` makes.

    Raises:
        SchemaError: the parts have other fields.
    """
    for part in parts[1:]:
        check_same(parts[0].batch.columns, part.batch.columns, part.number)
    if len(parts) == 1 and order is None:
        return _taken_over(parts[0], shards, left_out)
    return _copied(parts, sum(part.rows for part in parts), shards, order, memory, left_out)


def _taken_over(part: Part, shards: int, left_out: Collection[str]) -> dict[str, torch.Tensor]:
    """The columns of the only part. Rows of a batch that has others too are copied: each batch has memory of its own."""
    shared = (part.start, part.stop) != (0, part.batch.rows)
    columns = {name: column[part.start : part.stop] for name, column in part.batch.columns.items() if name not in left_out}
    ids = id_fields(columns)
    found = {name: _of_whole(ids.get(name, name), column, part, shards) for name, column in columns.items()}
    return {name: column.clone() if shared else column for name, column in found.items()}


def _copied(
    parts: Sequence[Part],
    rows: int,
    shards: int,
    order: npt.NDArray[np.int64] | None,
    memory: Memory,
    left_out: Collection[str],
) -> dict[str, torch.Tensor]:
    """The columns of all parts in new memory, each row at its place."""
    starts = np.cumsum([0, *(part.rows for part in parts)]).tolist()
    places = [slice(*ends) if order is None else order[slice(*ends)] for ends in itertools.pairwise(starts)]
    kinds = {name: column for name, column in parts[0].batch.columns.items() if name not in left_out}
    ids = id_fields(kinds)
    columns = {name: memory((rows, *column.shape[1:]), column.dtype) for name, column in kinds.items()}
    for name, column in columns.items():
        if not column.nbytes:
            continue
        target = as_rows(column)  # Once for all parts: it takes as long as a small part's copy.
        for part, place in zip(parts, places, strict=True):
            target[place] = rows_of(_of_whole(ids.get(name, name), part.batch.columns[name][part.start : part.stop], part, shards))
    return columns


def check_same(first: Columns, others: Columns, number: int) -> None:
    """Passes where rows of the shard `number` have the fields of other ones.

    Raises:
        SchemaError: they do not.
    """
    mine, theirs = _kinds(first), _kinds(others)
    if mine != theirs:
        differing = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        raise SchemaError(f"the shards are no one buffer: their rows differ in the fields {differing}, and those of shard {number} are others")


def _kinds(columns: Columns) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}


def _of_whole(name: str, column: torch.Tensor, part: Part, shards: int) -> torch.Tensor:
    """The values of a field of a shard as those of the whole buffer. In windows -1 stands for a step that is not there."""
    if name in (ROW_ID.name, INDEX.name):
        known = column.numpy()  # A few numbers: NumPy takes a third of torch's time for them.
        whole = sharded_row_ids(known, part.number) if name == ROW_ID.name else whole_slots(known, part.place, shards)
        return torch.from_numpy(whole if known.ndim == 1 else np.where(known < 0, known, whole))
    if name == PROBABILITY.name and part.share != 1.0 and part.batch.is_weighed:
        return column * part.share
    return column
