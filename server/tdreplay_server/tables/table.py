"""A table: rows, what chooses among them, and what decides who waits. The service works on it, and the buffer in process is made of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import torch

from tdreplay.api import Checkpoint, EpochQuery, Progress, State
from tdreplay.errors import EmptyTableError, FailedPreconditionError, StorageError
from tdreplay.limits import check_whole
from tdreplay.memory import Rows
from tdreplay.schema import Schema
from tdreplay_server.checkpoints.checkpoint import write_checkpoint
from tdreplay_server.durability.data_directory import CHECKPOINTS
from tdreplay_server.durability.insert import Insert
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.durability.table_config import TableConfig
from tdreplay_server.storage.ring import MAX_ROW_ID, Slots
from tdreplay_server.storage.rows import Inserts
from tdreplay_server.system.disk import check_name
from tdreplay_server.system.interrupts import lets_go
from tdreplay_server.tables.draws import DrawnRows
from tdreplay_server.tables.limiters import NO_DEADLINE, limiter_of
from tdreplay_server.tables.reading import gathered, taken
from tdreplay_server.tables.samplers import sampler_of
from tdreplay_server.tables.selection import ChosenRows, RowFormat, RowsInSlots, Selection, epoch_orders

__all__ = ["Table"]


class Table:
    """A row log, a sampler and a rate limiter, as a config says. All methods may be called from several threads.

    Reading goes in two steps: what the methods `select_*` give says which rows, and `read` or `take` copies them, a part at a time if need be.

    Args:
        config: What the table is fixed by.
        directory, durability, checkpoints, on_failure: As in `tdreplay_server.ReplayBuffer`, which also says the errors.
    """

    def __init__(
        self,
        config: TableConfig,
        *,
        directory: Path | None = None,
        durability: str = "process",
        checkpoints: Path | None = None,
        on_failure: Callable[[StorageError], object] | None = None,
    ) -> None:
        self._sampler, self._limiter = sampler_of(config.sampler), limiter_of(config.limiter)
        self._generator = np.random.default_rng()  # Its methods lock it: readers may share it.
        self._checkpointing = threading.Lock()
        self._checkpoints = checkpoints or (None if directory is None else directory / CHECKPOINTS)
        self._row_log = RowLog(config, self._sampler, directory=directory, durability=durability, on_failure=on_failure)

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        self._row_log.let_go()

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    def insert(self, columns: Inserts, schema: Schema, rows: int, key: InsertKey | None = None) -> tuple[int, bool]:
        """Copies `rows` rows of `schema` in. They are checked before anything is touched, and survive what `durability` says when this returns.

        Args:
            columns: field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
            schema: The schema of the rows.
            rows: The number of rows.
            key: What the insert is known by: one that was stored already is not stored again.

        Returns:
            The id of the first row, and whether the rows had been stored already.

        Raises:
            SchemaError, CodecError, SequenceError, ResourceExhaustedError, StorageError: as `RowLog.insert`.
        """
        with self._limiter.inserting(rows, NO_DEADLINE):
            return self._row_log.insert(Insert(columns, schema, rows, key))

    # -- choosing rows ------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def row_format(self, fields: Sequence[str] | None = None) -> RowFormat:
        """What is read of each row where these fields are asked for. None stands for all of them.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._row_log.shared:
            return self._format(fields)

    def unseeded(self, batches: int) -> Sequence[np.random.Generator]:
        """The generators of so many random batches that nobody wants to draw again."""
        return (self._generator,) * batches

    @lets_go
    def select_random(self, rows: int, generators: Sequence[np.random.Generator], fields: Sequence[str] | None = None) -> Selection:
        """Random batches of `rows` rows, one after the other, each drawn by the table's sampler with a generator of its own.

        The selection keeps the generators, and goes on drawing with them where a row is overwritten before it is read.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        count = rows * len(generators)
        with self._limiter.sampling(count, NO_DEADLINE), self._row_log.shared:
            found = self._format(fields)
            return self._selection(found, count, DrawnRows(self._sampler, rows, generators, self._row_log.ring))

    @lets_go
    def select_slots(self, slots: Slots, fields: Sequence[str] | None = None) -> Selection:
        """The rows in `slots`.

        Raises:
            SlotIndexError: a slot holds no live row.
            FieldNotFoundError: a field is not there.
        """
        with self._row_log.shared:
            self._row_log.check_open()
            self._row_log.ring.check_live(slots)
            return self._selection(self._format(fields), len(slots), RowsInSlots.listed(slots))

    @lets_go
    def select_all(self, fields: Sequence[str] | None = None) -> Selection:
        """Every live row, in slot order.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._row_log.shared:
            ring = self._row_log.ring
            rows = RowsInSlots(lambda start, stop: ring.in_slot_order(np.arange(start, stop)))
            return self._selection(self._format(fields), ring.size, rows)

    @lets_go
    def select_epochs(self, query: EpochQuery) -> Iterator[Selection]:
        """The batches of `query`, over the rows that are live now.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._row_log.shared:
            ring = self._row_log.ring
            none = self._selection(self._format(query.fields), 0, RowsInSlots.listed(np.empty(0, np.int64)))
        return (replace(none, rows=len(slots), chosen=RowsInSlots.listed(slots)) for slots in epoch_orders(query, ring))

    def _format(self, fields: Sequence[str] | None) -> RowFormat:
        self._row_log.check_open()
        schema = self._row_log.schema
        if schema is None or not self._row_log.ring.size:
            raise EmptyTableError("the table is empty: there is no row to sample yet")
        return RowFormat(schema.select(fields), schema.row_shape, schema.dim_names)

    def _selection(self, found: RowFormat, rows: int, chosen: ChosenRows) -> Selection:
        return Selection(found, rows, chosen, self._row_log.version)

    # -- reading rows -------------------------------------------------------------------------------------------------------------------------

    def read(self, selection: Selection, start: int, stop: int, out: dict[str, Rows], *, threads: bool = False) -> None:
        """Copies the rows of `selection` from `start` to `stop` into `out`: those of its fields that have bytes. No row is torn.

        `threads`: several may work on it.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        log = self._row_log
        with log.shared:
            log.check_version(selection.version)
            gathered(log.storage, selection.chosen.ids(log.ring, start, stop), out, threads=threads)

    @lets_go
    def take(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Copies of all rows of `selection`, on the storage's device: field name -> tensor of shape [n, ...], in the selection's order of fields.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        log = self._row_log
        with log.shared:
            log.check_version(selection.version)
            return taken(log.storage, selection.chosen.ids(log.ring, 0, selection.rows), selection.format.fields)

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The table's state, all of it at the same moment."""
        return self._row_log.state()

    @property
    def config(self) -> TableConfig:
        """What the table is fixed by, with the capacity that it has now."""
        return self._row_log.config

    @property
    def durability(self) -> str:
        """What stored rows survive: none, process, interval or power."""
        return self._row_log.durability

    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """As `tdreplay.api.BaseReplayBuffer.reset`."""
        self._row_log.reset(None if buffer_size is None else check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID))

    def rewind(self, buffer_size: int, size: int, write_count: int) -> None:
        """Makes earlier rows the live ones again. Arguments and errors: as `RowLog.rewind`."""
        self._row_log.rewind(buffer_size, size, write_count)

    @lets_go
    def checkpoint(self, name: str, *, progress: Progress | None = None) -> Checkpoint:
        """As `tdreplay.api.BaseReplayBuffer.checkpoint`."""
        if self._checkpoints is None:
            raise FailedPreconditionError("there is no directory for checkpoints, because the rows end with this process: name a data_dir")
        target = self._checkpoints / check_name(name, "checkpoint")
        if self._checkpointing.locked():
            raise FailedPreconditionError(f"checkpoint {name!r}: another checkpoint of this table is being written")
        with self._checkpointing:  # Where another one began just now, this one comes after it.
            return write_checkpoint(target, self._row_log, progress)

    def close(self) -> None:
        """Gives the memory back, and the space of rows that lie in no directory. Closing twice is allowed; any other call is then a ClosedError."""
        self._row_log.close()

    def drop(self) -> Path | None:
        """Ends the table for good. What it gives, and errors: as `RowLog.drop`."""
        return self._row_log.drop()
