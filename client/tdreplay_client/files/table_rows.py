"""The rows of a table, each once, in the order of their ids, and a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.api import BaseReplayBuffer
from tdreplay.columns import leaves
from tdreplay.errors import EmptyTableError, SlotIndexError, TableChangedError, UnimplementedError
from tdreplay.memory import rows_of
from tdreplay.schema import Columns, Schema
from tdreplay.system_fields import INDEX, PRIORITY, ROW_ID, STEP_NAMES
from tdreplay.table_description import TableDescription
from tdreplay_client.files.episode_cuts import EpisodeCuts

__all__ = ["PART_BYTES", "TableRows", "part_rows", "same_rows"]

PART_BYTES = 8 << 20
"""The bytes of rows that are read or written together."""

MOST_PART_ROWS = 1 << 16


def part_rows(schema: Schema) -> int:
    """How many rows are read or written together."""
    return max(1, min(MOST_PART_ROWS, PART_BYTES // max(1, schema.row_bytes)))


@dataclass
class TableRows:
    """The rows of these ids, of a table that others may write to meanwhile. A newer row is never taken for the one that it overwrote.

    Attributes:
        buffer: the table.
        described: the table when it was looked at.
        schema: the fields to be read.
        ids: the ids of the rows.
        overwritten: how many rows were overwritten, or left, before they were read.
        left_out: how many steps were left out, because a row of their episode before them was overwritten.
    """

    buffer: BaseReplayBuffer
    described: TableDescription
    schema: Schema
    ids: range
    overwritten: int = 0
    left_out: int = 0
    _cuts: EpisodeCuts = field(default_factory=EpisodeCuts)

    @property
    def has_priorities(self) -> bool:
        """Whether the rows have priorities."""
        return self.described.config.sampler.has_priorities

    def parts(self) -> Iterator[dict[str, torch.Tensor]]:
        """Field name -> tensor of shape [n, ...] on the CPU: those of the schema, ``index``, ``row_id`` and, where there are any, ``priority``.

        Raises:
            TableChangedError: the table was reset or rewound meanwhile.
        """
        step = part_rows(self.schema)
        for start in range(self.ids.start, self.ids.stop, step):
            found = self._read(np.arange(start, min(start + step, self.ids.stop)))
            if found:
                yield found
        self.check_same()

    def check_same(self) -> TableDescription:
        """The table as it is now.

        Raises:
            TableChangedError: it was reset or rewound.
        """
        now = self.buffer.describe()
        if now.generation_id != self.described.generation_id:
            raise TableChangedError("the table was reset or rewound while it was read")
        return now

    def _read(self, ids: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Those of the rows of `ids` that are still there; an empty dict: none is."""
        while len(ids):
            try:
                return self._kept(self._in_slots(ids % self.described.buffer_size), ids)
            except (SlotIndexError, EmptyTableError):  # Some of them have left, or are being overwritten.
                now = self.check_same()
                there = ids[ids >= now.write_count - now.size]
                self.overwritten += len(ids) - len(there)
                ids = there
        return {}

    def _in_slots(self, slots: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        names = [*(each.name for each in self.schema.fields), INDEX.name, ROW_ID.name]
        batch = self.buffer.sample_by_index_fields(slots, names, priorities=self.has_priorities).cpu()
        system = {name: batch[name].reshape(len(slots), -1)[:, 0].contiguous() for name in (INDEX.name, ROW_ID.name)}
        if self.has_priorities:
            if PRIORITY.name not in batch.keys():  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
                raise UnimplementedError("the server is of an older version: it does not say the priorities of rows")
            system[PRIORITY.name] = batch[PRIORITY.name].reshape(len(slots), -1)[:, 0].contiguous()
        users = leaves(batch)
        return {each.name: users[each.name] for each in self.schema.fields} | system

    def _kept(self, rows: dict[str, torch.Tensor], ids: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
        there = rows[ROW_ID.name].numpy() == ids
        self.overwritten += int(np.count_nonzero(~there))
        rows = _those(rows, there)
        if rows and self.described.config.trajectories and rows.keys() >= STEP_NAMES:
            follow = self._cuts.kept(rows)
            self.left_out += int(np.count_nonzero(~follow))
            rows = _those(rows, follow)
        return rows


def _those(rows: dict[str, torch.Tensor], mask: npt.NDArray[np.bool_]) -> dict[str, torch.Tensor]:
    """The rows of a mask; an empty dict: there are none."""
    if mask.all():
        return rows
    return {name: _picked(column, mask) for name, column in rows.items()} if mask.any() else {}


def _picked(column: torch.Tensor, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
    shape = (int(np.count_nonzero(mask)), *column.shape[1:])
    if not column.nbytes:
        return column.new_empty(shape)
    return torch.from_numpy(rows_of(column)[mask].view(np.uint8)).view(column.dtype).view(shape)  # As bytes: torch picks no float8.


def same_rows(one: Columns, other: Columns) -> bool:
    """Whether rows are the same, byte for byte."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return not one.nbytes or rows_of(one).tobytes() == rows_of(other).tobytes()
