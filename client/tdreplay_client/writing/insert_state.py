"""What is known of inserts, as values that are replaced whole: whoever is interrupted leaves the value from before, or the one from after.

Rows are inserted in blocks. Each block has an insert id, under which it is stored once however often it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.block import Layout
from tdreplay.columns import to_tensordict
from tdreplay.insert_id import InsertId
from tdreplay.limits import BLOCK_BYTES, MAX_BATCH_SIZE
from tdreplay.schema import Columns, Schema
from tdreplay.system_fields import PRIORITY
from tdreplay_client.writing.insert_messages import block_layout, rows_per_block

__all__ = ["Batch", "Block", "InsertState", "Part", "Staged"]


class Block(Protocol):
    """Rows with an insert id."""

    @property
    def insert_id(self) -> InsertId:
        """The name of the block."""

    @property
    def rows(self) -> int:
        """Its number of rows."""


class Staged(Protocol):
    """Rows that were appended, and have no insert id that was sent."""

    @property
    def rows(self) -> int:
        """Their number."""


class Part(NamedTuple):
    """The rows of a batch from `start` to `stop`, which travel as one block."""

    insert_id: InsertId
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Its number of rows."""
        return self.stop - self.start


class Batch(NamedTuple):
    """Rows that a user gave, and how they are cut into blocks.

    Attributes:
        columns: The rows, not copied.
        schema: The schema of the rows.
        rows: The number of rows.
        done: The number of rows at the front that are acknowledged, or lie in a block that is on its way.
        parts: The rows after those, as far as they have insert ids. The rest is not cut into blocks yet.
        first_ids: Where each acknowledged block begins in the batch -> the row id of its first row.
        priorities: The priorities of the rows. NaN stands for none: in rows that a writer hands back, some may have been given without. None: no
            row has one.
        block_rows: The most rows of a block.
        marks: What the writer's mark is before these rows are taken, and what it is afterwards; None: rows without a mark. Whoever gives a mark
            knows by it whether the rows were taken, so that they are not recognized when they are given again.
    """

    columns: Columns
    schema: Schema
    rows: int
    done: int = 0
    parts: tuple[Part, ...] = ()
    first_ids: Mapping[int, int] = MappingProxyType({})
    priorities: npt.NDArray[np.float64] | None = None
    block_rows: int = MAX_BATCH_SIZE
    marks: tuple[Any, Any] | None = None

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        """The row ids of all rows, int64 of shape [rows], when all are acknowledged. Between two blocks other writers may have inserted rows."""
        starts = sorted(self.first_ids)
        lengths = (stop - start for start, stop in zip(starts, [*starts[1:], self.rows], strict=True))
        return np.concatenate([np.arange(first := self.first_ids[start], first + length) for start, length in zip(starts, lengths, strict=True)])

    @property
    def resumed(self) -> bool:
        """Whether some of the rows went out before."""
        return self.done > 0 or len(self.parts) > 0

    @property
    def cut(self) -> int:
        """Where the rows begin that have no insert id."""
        return self.parts[-1].stop if self.parts else self.done

    @property
    def fits_one_block(self) -> bool:
        """Whether what is not done goes out as one block."""
        return len(self.parts) <= 1 and (self.cut if self.parts else self.block_stop(BLOCK_BYTES)) == self.rows

    def block_stop(self, block_bytes: int) -> int:
        """Where a block of about `block_bytes` ends that begins with the first row without an insert id. All of its rows have priorities, or none."""
        start, most = self.cut, min(rows_per_block(self.schema, block_bytes), self.block_rows)
        stop = min(self.rows, start + most)
        if self.priorities is None or start == stop:
            return stop
        changes = np.flatnonzero(np.diff(np.isnan(self.priorities[start:stop])))
        return start + 1 + int(changes[0]) if len(changes) else stop

    def has_priorities(self, part: Part) -> bool:
        """Whether the rows of a part have priorities."""
        return self.priorities is not None and not np.isnan(self.priorities[part.start])

    def layout(self, part: Part) -> Layout:
        """The layout of the block in which a part travels."""
        return block_layout(self.schema, part.rows, has_priorities=self.has_priorities(part))

    @property
    def sent_columns(self) -> Columns:
        """The columns, and the priorities among them, where there are any."""
        return self.columns if self.priorities is None else {**self.columns, PRIORITY.name: torch.from_numpy(self.priorities)}

    def without(self, rows: int) -> Batch | None:
        """The batch when that many rows more are done; None when all are."""
        done = self.done + rows
        return self._replace(done=done, parts=self.parts[1:]) if done < self.rows else None

    def finished(self) -> Batch:
        """The batch when all of its rows are done."""
        return self._replace(done=self.rows, parts=())

    def copied(self) -> Batch:
        """The same with a copy of the rows, which are the user's to change."""
        return self._replace(columns={name: column.to("cpu", copy=True) for name, column in self.columns.items()})

    def rest(self) -> list[TensorDict]:
        """A copy of the rows that are not done, in a list: an empty one where there are none."""
        if self.done >= self.rows:
            return []
        columns = {name: column[self.done :].to("cpu", copy=True) for name, column in self.sent_columns.items()}
        return [to_tensordict(columns, (self.rows - self.done, *self.schema.row_shape), torch.device("cpu"), self.schema.dim_names)]


class InsertState(NamedTuple):
    """The rows of one insert or one writer that are not acknowledged, in the order in which they are stored.

    Attributes:
        blocks: the blocks that are on their way, or have to be sent.
        acknowledged: the number of blocks before them.
        batch: a batch that is being added: its rows that are not done come after `blocks`.
        staged: appended rows: they come last.
    """

    blocks: tuple[Any, ...] = ()  # Of one kind of `Block`; a NamedTuple cannot be generic before Python 3.11.
    acknowledged: int = 0
    batch: Batch | None = None
    staged: Staged | None = None

    @property
    def taken(self) -> int:
        """The number of blocks until now."""
        return self.acknowledged + len(self.blocks)

    @property
    def rows(self) -> int:
        """The number of rows that are not acknowledged."""
        rest = 0 if self.batch is None else self.batch.rows - self.batch.done
        in_blocks: int = sum(block.rows for block in self.blocks)
        return in_blocks + rest + (0 if self.staged is None else self.staged.rows)

    def with_staged_block(self, block: Block) -> InsertState:
        """The appended rows became a block."""
        return InsertState((*self.blocks, block), self.acknowledged, self.batch)

    def with_batch_block(self, block: Block) -> InsertState:
        """The next rows of the batch became a block."""
        batch = None if self.batch is None else self.batch.without(block.rows)
        return InsertState((*self.blocks, block), self.acknowledged, batch, self.staged)

    def with_staged(self, staged: Staged | None) -> InsertState:
        """Other appended rows."""
        return InsertState(self.blocks, self.acknowledged, self.batch, staged)

    def with_batch(self, batch: Batch | None) -> InsertState:
        """Another batch that is being added."""
        return InsertState(self.blocks, self.acknowledged, batch, self.staged)

    def without_first(self) -> InsertState:
        """The first block is acknowledged."""
        return InsertState(self.blocks[1:], self.acknowledged + 1, self.batch, self.staged)

    def with_replaced(self, at: int, block: Block) -> InsertState:
        """The same rows in another message."""
        return InsertState((*self.blocks[:at], block, *self.blocks[at + 1 :]), self.acknowledged, self.batch, self.staged)
