"""Rows as users give them, into a table of this process: single inserts, and the steps of episodes."""

from __future__ import annotations

import time
import uuid
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.errors import ClosedError, FailedPreconditionError
from tdreplay.insert_id import InsertId
from tdreplay.limits import DEFAULT_TIMEOUT
from tdreplay.processes import Owner
from tdreplay.rows import Given
from tdreplay.schema import Columns
from tdreplay.trajectory_writer import StepSink, joined
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.tables.limiters import Wait
from tdreplay_server.tables.table import Table

__all__ = ["TableSink", "insert_given"]


def columns_of(table: Table, rows: Given, *, cast: bool) -> Columns:
    """Rows as columns of the table's dtypes.

    Raises:
        SchemaError, CodecError: they do not fit, or cannot be stored.
    """
    return rows.columns(table.state().schema if cast or not rows.typed else None, cast=cast)


def insert_given(table: Table, rows: Given, *, cast: bool, key: InsertKey | None = None) -> npt.NDArray[np.int64]:
    """Inserts rows, and gives their row ids, int64 of shape [n]. The errors are those of `BaseReplayBuffer.add` and `Table.insert`."""
    columns, wait = columns_of(table, rows, cast=cast), Wait(time.monotonic() + DEFAULT_TIMEOUT)
    first, _ = table.insert(columns, rows.schema(columns), rows.number, key, priorities=rows.priorities, wait=wait)
    return np.arange(first, first + rows.number)


class TableSink(StepSink):
    """Inserts the rows of each call at once, under a number, by which the table knows after an interrupt whether it has them.

    Args:
        table: the table.
        owner: the process that has it.
        cast: whether values of other dtypes are converted.
    """

    def __init__(self, table: Table, owner: Owner, *, cast: bool) -> None:
        self._table, self._owner, self.cast = table, owner, cast
        self._writer_id, self._sequence = uuid.uuid4().hex, 0
        self._mark: Any = None
        self._asked: tuple[InsertKey, Any] | None = None  # The insert of which it is not known whether it was stored, and the mark that it leaves.
        self._open = True
        self._leave = weakref.finalize(self, table.writing(self._writer_id).close)

    @property
    def takes_at_once(self) -> bool:
        return False

    @property
    def is_open(self) -> bool:
        return self._open and self._owner.is_here

    @property
    def mark(self) -> Any:
        """What the rows left that were taken last."""
        asked = self._asked
        if asked is not None:
            key, after = asked
            if self._table.has_stored(key):
                self._mark = after
            self._asked = None
        return self._mark

    @mark.setter
    def mark(self, mark: Any) -> None:
        self._mark = mark

    def columns(self, rows: Given) -> Columns:
        return columns_of(self._table, rows, cast=self.cast)

    def take(self, rows: Given, before: Any, after: Any) -> None:
        self._owner.check()
        if not self._open:
            raise ClosedError("the writer is closed")
        if self.mark is not before:
            raise FailedPreconditionError(
                "a writer of trajectories is for one thread, and a signal handler must not write in the middle of its calls"
            )
        self._sequence += 1
        key = InsertKey(InsertId(self._writer_id, self._sequence), 0)
        self._asked = key, after
        insert_given(self._table, rows, cast=self.cast, key=key)
        self._mark, self._asked = after, None

    def take_both(self, rows: Given, finals: Given, marks: tuple[Any, Any, Any]) -> None:
        self.take(joined(rows, finals), marks[0], marks[2])

    def flush(self, timeout: float | None) -> None:
        self._owner.check()

    def close(self, timeout: float | None) -> None:
        self._open = False
        self._leave()
