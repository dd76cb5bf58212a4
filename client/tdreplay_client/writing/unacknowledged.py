"""Inserts that failed so that nobody knows whether their rows were stored, and how they go out again so that they are stored once."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.digests import digest_of
from tdreplay.errors import ReplayError
from tdreplay.limits import MAX_BATCH_SIZE
from tdreplay.rows import given_rows
from tdreplay.schema import Columns, Schema
from tdreplay.system_fields import PRIORITY
from tdreplay_client.transport.refusals import stored_nothing
from tdreplay_client.writing.insert_ids import WriterIds
from tdreplay_client.writing.insert_state import Batch, InsertState, Part
from tdreplay_client.writing.staging import Staging

__all__ = ["MAX_RECORDS", "UnacknowledgedInserts", "handed_back", "same_rest"]

MAX_RECORDS = 64


@dataclass(frozen=True, eq=False)
class Record:
    """A batch without its rows: their digest and their priorities, and what became of them."""

    schema: Schema
    rows: int
    digest: bytes
    done: int
    parts: tuple[Part, ...]
    first_ids: Mapping[int, int]
    priorities: npt.NDArray[np.float64] | None


class UnacknowledgedInserts:
    """The failed inserts of one buffer and its writers; where there are more than 64, the last ones.

    A user who repeats an insert gives the same rows again. They go out as they did: cut into the same blocks, under the same insert ids, without the
    blocks that are acknowledged. They are known by their contents, which are read when an insert fails, and before an insert of as many rows as a
    failed one. Priorities are no part of the contents: rows that are given again keep those with which they went out.

    Attributes:
        writer_ids: the writer ids of the buffer.
        block_rows: the most rows of a block.
    """

    def __init__(self) -> None:
        self.writer_ids, self.block_rows = WriterIds(), MAX_BATCH_SIZE
        self._records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self._lock = threading.Lock()

    def note(self, batch: Batch, error: BaseException) -> bool:
        """Keeps what `error` ended. False where there is nothing to keep: nothing was sent, or the server stored nothing."""
        record = record_of(batch, error)
        if record is not None:
            self.keep(record)
        return record is not None

    def keep(self, record: Record) -> None:
        """Keeps a record, once however often it comes: an interrupted caller comes again with it."""
        with self._lock:
            if not any(kept is record for kept in self._records):
                self._records.append(record)

    def claim(self, columns: Columns, schema: Schema, rows: int, priorities: npt.NDArray[np.float64] | None = None) -> Batch:
        """These rows as they go out: as they did before, where they failed, and else afresh."""
        columns, schema = self.as_given(columns, schema, rows)
        batch = Batch(columns, schema, rows, priorities=priorities, block_rows=self.block_rows)
        record = self._found(batch)
        if record is None:
            return batch
        with self._lock:
            if record not in self._records:  # Another thread was quicker.
                return batch
            self._records.remove(record)
        return batch._replace(done=record.done, parts=record.parts, first_ids=record.first_ids, priorities=record.priorities)

    def as_given(self, columns: Columns, schema: Schema, rows: int) -> tuple[Columns, Schema]:
        """Rows as they were given first: without the priorities that an error handed back as a field of them."""
        if self._records and len(columns) > 1 and PRIORITY.name in columns and columns[PRIORITY.name].dtype is PRIORITY.dtype:
            bare = _separated(Batch(columns, schema, rows))
            if self._found(bare) is not None:
                return bare.columns, bare.schema
        return columns, schema

    def _found(self, batch: Batch) -> Record | None:
        """The record of these rows; None: they did not go out before."""
        if not self._records or not self._has_alike(batch.schema, batch.rows):
            return None
        digest = digest_of(batch.columns)
        with self._lock:
            alike = (record for record in self._records if (record.schema, record.rows, record.digest) == (batch.schema, batch.rows, digest))
            return next(alike, None)

    def _has_alike(self, schema: Schema, rows: int) -> bool:
        with self._lock:
            return any((record.schema, record.rows) == (schema, rows) for record in self._records)

    def clear(self) -> None:
        """Forgets them: the table does not hold earlier rows any more."""
        with self._lock:
            self._records.clear()


def record_of(batch: Batch, error: BaseException) -> Record | None:
    """What is to be known of a batch that `error` ended. None where nothing was sent, or the server stored nothing, or it has marks."""
    if not batch.resumed or batch.marks is not None or (isinstance(error, ReplayError) and stored_nothing(error)):
        return None
    return Record(batch.schema, batch.rows, digest_of(batch.columns), batch.done, batch.parts, batch.first_ids, batch.priorities)


def handed_back(state: InsertState, given: TensorDict | None, *, has_priorities: bool = False) -> tuple[TensorDict, Batch] | None:
    """The rows of a writer that are not acknowledged, then those that were just `given`, and how they go out again so that each is stored once.

    None: there are none. Where a row was given with a priority (`has_priorities`), all rows have the field ``priority``: NaN in those without one.
    """
    tensordicts = [block.copied() for block in state.blocks]
    numbered = [Part(block.insert_id, 0, block.rows) for block in state.blocks]
    if state.batch is not None:
        tensordicts += state.batch.rest()
        numbered += state.batch.parts
    if isinstance(state.staged, Staging) and state.staged.rows:  # These never went out.
        tensordicts.append(state.staged.message().copied())
    tensordicts += [] if given is None else [given]
    if not tensordicts:
        return None
    rows = torch.cat([_with_priorities(tensordict) for tensordict in tensordicts] if has_priorities else tensordicts)
    batch = _numbered(rows, numbered)
    return rows, _separated(batch) if has_priorities else batch


def _with_priorities(rows: TensorDict) -> TensorDict:
    """The same rows, which have the field ``priority`` from now on."""
    if PRIORITY.name not in rows.keys():  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        rows.set(PRIORITY.name, torch.full(rows.batch_size, torch.nan, dtype=PRIORITY.dtype))
    return rows


def _separated(batch: Batch) -> Batch:
    """The batch, whose priorities are not one of its columns any more."""
    column = batch.columns[PRIORITY.name].cpu().reshape(batch.rows, -1)
    columns = {name: other for name, other in batch.columns.items() if name != PRIORITY.name}
    priorities = column[:, 0].to(PRIORITY.dtype).numpy() if column.shape[1] else None
    return batch._replace(columns=columns, schema=batch.schema.without((PRIORITY.name,)), priorities=priorities)


def _numbered(rows: TensorDict, parts: list[Part]) -> Batch:
    """These rows as a batch, whose first rows are those of `parts`."""
    given = given_rows(rows)
    columns = given.columns(None, cast=False)
    stops = itertools.accumulate(part.rows for part in parts)
    moved = tuple(Part(part.insert_id, stop - part.rows, stop) for part, stop in zip(parts, stops, strict=True))
    return Batch(columns, given.schema(columns), len(rows), parts=moved)


def same_rest(batch: Batch, again: Batch) -> bool:
    """Whether two batches of as many rows have the same rows from where the first one is done on."""
    if (batch.schema, batch.rows) != (again.schema, again.rows):
        return False
    return digest_of(_from(batch.columns, batch.done)) == digest_of(_from(again.columns, batch.done))


def _from(columns: Columns, start: int) -> Columns:
    return {name: column[start:] for name, column in columns.items()}
