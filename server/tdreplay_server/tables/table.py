"""A table: rows in a storage, and what they mean. What the service works on, and what the buffer in process is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import SupportsIndex, TypeAlias

import numpy as np
import torch

from tdreplay.api import Checkpoint, EpochQuery, Progress, State
from tdreplay.block import check_header
from tdreplay.errors import (
    ClosedError,
    EmptyTableError,
    FailedPreconditionError,
    MissingRowsError,
    ReplayError,
    ResourceExhaustedError,
    StorageError,
    TableChangedError,
    TableNotFoundError,
)
from tdreplay.limits import check_whole
from tdreplay.memory import Rows
from tdreplay.schema import Schema
from tdreplay_server.checkpoints.checkpoint import write_checkpoint
from tdreplay_server.checkpoints.snapshot import Snapshot
from tdreplay_server.durability.data_directory import CHECKPOINTS
from tdreplay_server.durability.durable_writer import DurableWriter, Insert, joins
from tdreplay_server.durability.failures import DiskFailure
from tdreplay_server.durability.flusher import Flusher
from tdreplay_server.durability.group_commit import GroupCommit
from tdreplay_server.durability.journal import Journal
from tdreplay_server.durability.ledger import Ledger, Number
from tdreplay_server.durability.levels import Durability
from tdreplay_server.durability.recovery import trusted
from tdreplay_server.durability.table_config import TableConfig
from tdreplay_server.durability.table_directory import TableDirectory, rows_directory
from tdreplay_server.storage.device import check_device
from tdreplay_server.storage.locks import ReadWriteLock
from tdreplay_server.storage.opening import open_storage
from tdreplay_server.storage.ring import MAX_ROW_ID, Ring, Slots, check_window
from tdreplay_server.storage.rows import Inserts, RowStorage
from tdreplay_server.system.disk import check_name
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.interrupts import lets_go
from tdreplay_server.tables.reading import gathered, taken
from tdreplay_server.tables.selection import Selection, epoch_orders

__all__ = ["Table"]

_Parts: TypeAlias = "tuple[RowStorage, DurableWriter]"


class Table:
    """A ring of rows of one schema. All methods may be called from several threads.

    Args:
        config: what the table is fixed by.
        directory, durability, checkpoints, on_failure: as in `tdreplay_server.ReplayBuffer`, which also says the errors.
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
        level, where = Durability.parse(durability), torch.device(config.storing_device)
        check_device(where)  # Before a directory is made.
        self._lock, self._flushing, self._checkpointing = ReadWriteLock(), threading.Lock(), threading.Lock()
        self._inserts = GroupCommit(self._insert_all, self._joins)
        self._reads_before = 0  # When the last group was stored.
        self._generator = np.random.default_rng()  # Its methods lock it: readers may share it.
        self._generation = 0
        self._allocating = False
        self._config = config
        self._closed = self._dropped = False
        self._failure = DiskFailure(on_failure)
        self._flusher: Flusher | None = None
        self._kept: TableDirectory | None = None
        self._schema: Schema | None = None
        self._checkpoints = checkpoints or (None if directory is None else directory / CHECKPOINTS)
        if directory is None or where.type != "cpu":
            self._ledger = Ledger()
            self._take_up(self._parts(where, Ring(config.buffer_size), 1), 1)
        else:
            self._open_directory(directory, level)

    def _open_directory(self, directory: Path, durability: Durability) -> None:
        self._kept = TableDirectory(directory, self._config, durability)
        self._flusher = Flusher(durability.seconds, self._flush) if durability.level == "interval" else None
        journal = self._ledger = self._kept.journal
        found = journal.state.settings
        self._config = replace(found.config, name=self._config.name)
        try:
            self._take_up(self._parts(torch.device("cpu"), journal.state.ring, found.generation), found.generation)
            if found.schema is not None:
                self._recover(journal, found.schema)
        except BaseException:
            self._storage.release()
            try:
                journal.release()
            finally:
                self._kept.close()
            raise
        if self._flusher is not None:
            self._flusher.start()

    def _recover(self, journal: Journal, schema: Schema) -> None:
        storage = self._storage
        storage.open_columns(schema)
        self._schema = schema
        storage.ring = trusted(journal.state.ring, journal.state.unflushed, storage, schema)
        if journal.durability.reaches_disk:
            storage.sync()  # The last server may have had another level.
        if journal.state.unflushed:
            journal.forget_from(storage.ring)

    def _parts(self, storing_device: torch.device, ring: Ring, rows: int) -> _Parts:
        """What holds rows that are not there yet; `rows` is the number of the directory that they get."""
        directory = None if self._kept is None else rows_directory(self._kept.path, rows)
        storage = open_storage(storing_device, ring.buffer_size, directory)
        storage.ring = ring
        return storage, DurableWriter(storage, self._ledger, self._flusher, self._lock.write(), self._forget_selections)

    def _take_up(self, parts: _Parts, rows: int) -> None:
        """Works with other parts from now on. It calls nothing: an interrupt (Ctrl-C) comes before or after it."""
        self._storage, self._writer = parts
        self._rows, self._schema, self._allocating = rows, None, False
        self._generation += 1

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def insert(self, columns: Inserts, schema: Schema, rows: int, number: Number | None = None) -> tuple[int, bool]:
        """Copies `rows` rows of `schema` in. They are checked before anything is touched, and survive what `durability` says when this returns.

        Args:
            columns: field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
            schema: of the rows.
            rows: how many they are.
            number: what the block is known by: one that was stored already is not stored again.

        Returns:
            The id of the first row, and whether the block had been stored already.

        Raises:
            SchemaError, CodecError: the rows differ from those before them, or cannot be sent.
            SequenceError: the number stands for other rows.
            ResourceExhaustedError: there is no space for the rows. Nothing was stored.
            StorageError: the disk failed. The table is of no use any more; its rows are safe in its directory.
        """
        insert = Insert(columns, schema, rows, number)
        self._inserts.put(insert)
        return insert.outcome

    def _insert_all(self, inserts: list[Insert]) -> None:
        """Stores what several threads insert, together. Each of them finds in its `Insert` what became of it."""
        try:
            with self._failure.noted():
                self._check_open()
                fresh = [insert for insert in inserts if self._is_fresh(insert)]
                if fresh:
                    self._write(fresh)
        except BaseException as error:
            for insert in inserts:
                insert.failed(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._reads_before = self._lock.reads

    def _joins(self, group: list[Insert], insert: Insert) -> bool:
        return joins(group, insert, readers=self._lock.reads != self._reads_before)

    def _is_fresh(self, insert: Insert) -> bool:
        """Whether a block is to be stored; where it was stored before, or cannot be, that is noted in it."""
        try:
            known = None if insert.number is None else self._ledger.find(insert.number)
            if known is None:
                self._fit(insert.schema)
                return True
            insert.stored(known.first_row_id, before=True)
        except StorageError:
            raise
        except ReplayError as error:
            insert.error = error
        return False

    def _fit(self, schema: Schema) -> None:
        """Checks rows against the schema; the first ones fix it."""
        if self._schema is None:
            check_header(schema)
            if self._allocating:  # That was interrupted, and has left files.
                self._storage.discard()
            self._allocating = True
            self._storage.allocate(schema)
            try:
                self._note_schema(schema)
            except ResourceExhaustedError:
                self._storage.discard()
                raise
            self._schema, self._allocating = schema, False
        self._schema.check(schema)

    def _note_schema(self, schema: Schema) -> None:
        with self._failure.noted():
            if self._kept is not None:
                self._kept.settle(self._rows)
            failpoint("allocate-before-schema")
            self._ledger.restart(self._storage.ring, self._rows, schema)

    def _write(self, inserts: list[Insert]) -> None:
        row_id = self._storage.ring.write_count
        self._writer.insert(inserts)
        for insert in inserts:
            insert.stored(row_id)
            row_id += insert.rows

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        self._lock.let_go()
        self._inserts.let_go()

    def _note_ring(self, ring: Ring, rows: int, schema: Schema | None) -> None:
        """Notes in the ledger that the table has another ring, which it is to take up next."""
        try:
            with self._failure.noted():
                self._ledger.restart(ring, rows, schema)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C: it may be noted, or not.
                self._ledger.restart(self._storage.ring, self._rows, self._schema)
            raise

    def _forget_selections(self) -> None:
        """Whoever selected rows before must not read them: their slots may be torn."""
        self._generation += 1

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps everyone else out."""
        with self._flushing, self._inserts.alone(), self._lock.write():
            yield

    def _flush(self) -> None:
        """Brings to the disk what was stored so far. Others write and read meanwhile."""
        with self._flushing, self._failure.noted():
            with self._lock.read():
                if self._closed:
                    return
                self._failure.check()
                # The first rows make the files, while this does not keep inserts out.
                written = -1 if self._schema is None else self._storage.ring.write_count
            if self._flusher is not None and written not in (-1, self._flusher.flushed_to):
                self._storage.sync()
                with self._inserts.alone():
                    self._writer.note_flushed(written)

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def take(self, selection: Selection) -> dict[str, torch.Tensor]:
        """Copies of all rows of `selection`, on the storage's device: field name -> tensor of shape [n, ...], in the selection's order of fields.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        with self._lock.read():
            self._check_generation(selection.generation)
            return taken(self._storage, selection)

    @lets_go
    def select_random(self, rows: int, fields: Sequence[str] | None = None) -> Selection:
        """`rows` rows, drawn uniformly with replacement.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            self._schema_of_rows()
            return self._select(rows, _slices(self._storage.ring.draw(rows, self._generator)), fields)

    @lets_go
    def select_drawn(self, rows: int, generators: Sequence[np.random.Generator], fields: Sequence[str] | None = None) -> Selection:
        """Random batches of `rows` rows, one after the other, each drawn with a generator of its own. The order of the rows counts, not their ids.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            self._schema_of_rows()
            slots = np.concatenate([self._storage.ring.draw(rows, generator) for generator in generators])
            return self._select(len(slots), _slices(slots), fields)

    @lets_go
    def select_slots(self, slots: Slots, fields: Sequence[str] | None = None) -> Selection:
        """The rows in `slots`.

        Raises:
            SlotIndexError: a slot holds no live row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            self._check_open()
            self._storage.ring.check_live(slots)
            return self._select(len(slots), _slices(slots), fields)

    @lets_go
    def select_all(self, fields: Sequence[str] | None = None) -> Selection:
        """Every live row, in slot order.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            ring = self._storage.ring
            return self._select(ring.size, lambda start, stop: ring.in_slot_order(np.arange(start, stop)), fields)

    @lets_go
    def select_epochs(self, query: EpochQuery) -> Iterator[Selection]:
        """The batches of `query`, over the rows that are live now.

        Raises:
            EmptyTableError: there is no row.
            FieldNotFoundError: a field is not there.
        """
        with self._lock.read():
            selection, ring = self._select(0, _slices(np.empty(0, np.int64)), query.fields), self._storage.ring
        return (replace(selection, rows=len(slots), slots=_slices(slots)) for slots in epoch_orders(query, ring))

    def _select(self, rows: int, slots: Callable[[int, int], Slots], fields: Sequence[str] | None) -> Selection:
        schema = self._schema_of_rows()
        return Selection(schema.select(fields), schema.row_shape, rows, slots, self._generation, schema.dim_names)

    def _schema_of_rows(self) -> Schema:
        self._check_open()
        if self._schema is None or not self._storage.ring.size:
            raise EmptyTableError("the table is empty: there is no row to sample yet")
        return self._schema

    def read(self, selection: Selection, start: int, stop: int, out: dict[str, Rows], *, threads: bool = False) -> None:
        """Copies the rows of `selection` from `start` to `stop` into `out`: those of its fields that have bytes. No row is torn.

        `threads`: several may work on it.

        Raises:
            TableChangedError: the table was reset, rewound or closed since the rows were selected.
        """
        with self._lock.read():
            self._check_generation(selection.generation)
            gathered(self._storage, selection.slots(start, stop), out, threads=threads)

    @contextmanager
    def _reading(self, generation: int) -> Iterator[None]:
        with self._lock.read():
            self._check_generation(generation)
            yield

    def _check_generation(self, generation: int) -> None:
        if generation != self._generation:
            raise TableChangedError("the table was reset, rewound or dropped while it was read")

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def state(self) -> State:
        """The table's state, all of it at the same moment."""
        with self._lock.read():
            self._check_open()
            ring = self._storage.ring
            device, schema, durability = self._storage.device, self._schema, self.durability
            return State(ring.buffer_size, ring.size, ring.pointer, ring.write_count, device, schema, durability, ring.insert_count)

    @property
    def config(self) -> TableConfig:
        """What the table is fixed by: with the capacity that it has now, and the number of its device."""
        return replace(self._config, buffer_size=self._storage.buffer_size, storing_device=str(self._storage.device))

    @property
    def durability(self) -> str:
        """What stored rows survive: none, process, interval or power."""
        return self._ledger.durability.level

    @lets_go
    def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        """As `tdreplay.api.BaseReplayBuffer.reset`."""
        with self._alone():
            self._check_open()
            self._restart(self._storage.buffer_size if buffer_size is None else check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID))

    def _restart(self, buffer_size: int) -> None:
        ring, old = self._storage.ring.restart(buffer_size), self._storage
        parts = self._parts(old.device, ring, self._rows + 1)
        self._note_ring(ring, self._rows + 1, None)
        self._take_up(parts, self._rows + 1)
        failpoint("reset-after-journal")
        old.discard()

    @lets_go
    def rewind(self, buffer_size: int, size: int, write_count: int) -> None:
        """Makes the row ids ``[write_count - size, write_count)`` the live rows again; an empty buffer takes the capacity `buffer_size`.

        Raises:
            MissingRowsError: some of those rows are not stored. Nothing changes.
            InvalidArgumentError: a number is out of its range.
        """
        check_window(buffer_size, size, write_count)
        with self._alone():
            self._check_open()
            ring = self._storage.ring
            if buffer_size != ring.buffer_size and (size or ring.size):
                raise MissingRowsError(f"buffer_size ({buffer_size}) must be {ring.buffer_size}: a buffer that holds rows keeps its capacity")
            rewound = replace(ring, buffer_size=buffer_size).rewind(size, write_count)
            if buffer_size != ring.buffer_size:
                self._restart(buffer_size)
            if self._flusher is not None:
                with self._failure.noted():
                    self._storage.sync()
            self._note_ring(rewound, self._rows, self._schema)
            self._generation += 1
            self._storage.ring = rewound
            if self._flusher is not None:
                self._flusher.flushed_to = write_count

    @lets_go
    def checkpoint(self, name: str, *, progress: Progress | None = None) -> Checkpoint:
        """As `tdreplay.api.BaseReplayBuffer.checkpoint`."""
        if self._checkpoints is None:
            raise FailedPreconditionError("there is no directory for checkpoints, because the rows end with this process: name a data_dir")
        target = self._checkpoints / check_name(name, "checkpoint")
        if self._checkpointing.locked():
            raise FailedPreconditionError(f"checkpoint {name!r}: another checkpoint of this table is being written")
        with self._checkpointing:  # Where another one began just now, this one comes after it.
            return write_checkpoint(target, self.config, self._snapshotted, progress)

    @contextmanager
    def _snapshotted(self, directory: Path) -> Iterator[Snapshot]:
        """A snapshot of the rows as they are now, into that directory."""
        with self._inserts.alone(), self._lock.read():
            self._check_open()
            reading = partial(self._reading, self._generation)
            snapshot = Snapshot(self._storage, self._schema, self._ledger.acknowledged(), directory, reading)
            writer = self._writer
            writer.snapshot = snapshot
        try:
            yield snapshot
        finally:
            with self._inserts.alone():
                writer.snapshot = None
            snapshot.close()

    @lets_go
    def close(self) -> None:
        """Gives the memory back, and the space of rows that lie in no directory. Closing twice is allowed; any other call is then a ClosedError."""
        if self._flusher is not None:
            self._flusher.close()
        with self._alone():
            closing, self._closed = not self._closed, True
            self._generation += 1
            try:
                if closing:
                    self._end_ledger()
            finally:
                self._storage.release()
                if self._kept is not None:
                    self._kept.close()

    def _end_ledger(self) -> None:
        if self._failure.happened:
            return  # What is on the disk is as it would be after a kill.
        if self._ledger.durability.reaches_disk:
            self._storage.sync()
        self._ledger.close(self._storage.ring)

    @lets_go
    def drop(self) -> Path | None:
        """Ends the table for good: another one may have its directory when this returns. Where it raises, nothing changed.

        Returns:
            Where its files lie now, for `disk.discard` to remove them; None: it has none.

        Raises:
            FailedPreconditionError, StorageError: the directory cannot be renamed.
        """
        with self._alone():
            self._check_not_closed()
            removed = None if self._kept is None else self._kept.take_away()
            self._closed = self._dropped = True
            self._generation += 1
            self._storage.release()
            # Before the name is free: SQLite removes its log by the name that it had.
            self._ledger.abandon()
            if self._kept is not None:
                self._kept.close()
        if self._flusher is not None:
            self._flusher.close()
        return removed

    def _check_open(self) -> None:
        self._failure.check()
        self._check_not_closed()

    def _check_not_closed(self) -> None:
        if self._dropped:
            raise TableNotFoundError(f"table {self._config.name!r} was dropped")
        if self._closed:
            raise ClosedError("the buffer is closed")


def _slices(slots: Slots) -> Callable[[int, int], Slots]:
    return lambda start, stop: slots[start:stop]
