"""The row log of a table: which rows are live, where they lie, and what of them survives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from tdreplay.api import State
from tdreplay.errors import ClosedError, MissingRowsError, ReplayError, StorageError, TableChangedError, TableNotFoundError
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.durable_writer import DurableWriter
from tdreplay_server.durability.failures import DiskFailure
from tdreplay_server.durability.flusher import Flusher
from tdreplay_server.durability.generation import Generation
from tdreplay_server.durability.generation_id import new_generation_id
from tdreplay_server.durability.group_commit import GroupCommit
from tdreplay_server.durability.insert import Insert, joins
from tdreplay_server.durability.ledger import AcknowledgedInsert, InsertKey, Ledger, RememberedInsert
from tdreplay_server.durability.levels import Durability
from tdreplay_server.durability.row_listeners import RowListener, Told, Watcher
from tdreplay_server.durability.slot_state import SlotState
from tdreplay_server.durability.table_directory import TableDirectory, rows_directory
from tdreplay_server.storage.device import check_device
from tdreplay_server.storage.locks import ReadWriteLock
from tdreplay_server.storage.opening import open_storage
from tdreplay_server.storage.ring import Ring, check_window
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.system.counting import Distribution
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.interrupts import lets_go

__all__ = ["RowLog"]


W = TypeVar("W", bound=Watcher)


class RowLog:
    """A ring of rows of one schema, on the disk or in memory. It chooses no rows, and lets nobody wait.

    All methods may be called from several threads. What reads rows holds `shared`, checks `check_open` or `check_version`, and then has `ring`,
    `schema`, `version` and `storage` of one moment.

    Attributes:
        shared: For ``with``: holds the lock as one of the readers. Nothing is overwritten meanwhile, and the ring does not move.

    Args:
        config: What the table is fixed by. A directory that is there must agree.
        listener: Hears which rows are live.
        directory: For the rows on the CPU, and what they mean. None: they end with the process.
        durability: What stored rows survive, given a directory; see `Durability.parse`.
        on_failure: Called once, from a thread of its own, when the disk failed. From then on every call raises that error.

    Raises:
        InvalidArgumentError: the storing device is not there, or durability is none of these.
        FailedPreconditionError: the directory holds a table with other settings, or of a newer version. Nothing in it changed.
        DirectoryInUseError: another process has the directory.
        CorruptDataError: what is in the directory is not what was written.
    """

    def __init__(
        self,
        config: TableConfig,
        listener: RowListener,
        *,
        directory: Path | None = None,
        durability: str = "process",
        on_failure: Callable[[StorageError], object] | None = None,
    ) -> None:
        level, where = Durability.parse(durability), torch.device(config.storing_device)
        check_device(where)  # Before a directory is made.
        self._config = config
        self._lock, self._flushing = ReadWriteLock(), threading.Lock()
        self.shared = self._lock.read()
        self._inserts = GroupCommit(self._insert_all, self._joins)
        self._reads_before = 0  # When the last group was stored.
        self._version = 0
        self._closed = self._dropped = False
        self._told = Told(listener)
        self._failure = DiskFailure(on_failure)
        self._flusher: Flusher | None = None
        self._directory: TableDirectory | None = None
        self._ledger = Ledger()
        if directory is None or where.type != "cpu":
            self._take_up(self._made(where, Ring(config.buffer_size), 1))
        else:
            self._open(TableDirectory(directory, config, level, listener.kept))

    def _open(self, directory: TableDirectory) -> None:
        self._directory, journal = directory, directory.journal
        self._ledger, durability = journal, journal.durability
        self._flusher = Flusher(durability.seconds, self._flush) if durability.level == "interval" else None
        self._take_up(self._made(torch.device("cpu"), journal.state.ring, journal.state.settings.generation))
        try:
            self._rows.recover(journal)
            self._told.tell(self.ring)
        except BaseException:
            self.storage.release()
            try:
                journal.release()
            finally:
                directory.close()
            raise
        if self._flusher is not None:
            self._flusher.start()

    def _made(self, storing_device: torch.device, ring: Ring, number: int) -> Generation:
        """The generation of that number, without rows."""
        directory = None if self._directory is None else rows_directory(self._directory.path, number)
        storage = open_storage(storing_device, ring.buffer_size, directory)
        storage.ring = ring
        writer = DurableWriter(storage, self._ledger, self._flusher, self._lock.write(), self._told, self._forget_selections)
        return Generation(number, storage, writer, self._ledger, self._told.listener, self._directory)

    def _take_up(self, rows: Generation) -> None:
        """Works with another generation from now on. It calls nothing: an interrupt (Ctrl-C) comes before or after it."""
        self._rows = rows
        self._version += 1

    # -- what is live -------------------------------------------------------------------------------------------------------------------------

    @property
    def ring(self) -> Ring:
        """The live rows."""
        return self._rows.storage.ring

    @property
    def storage(self) -> RowStorage:
        """Where the rows lie."""
        return self._rows.storage

    @property
    def schema(self) -> Schema | None:
        """The schema of the rows; None before the first ones."""
        return self._rows.schema

    @property
    def version(self) -> int:
        """What row ids mean: those of an older version may be other rows now, or none. A reset, a rewind, a drop and a torn insert change it."""
        return self._version

    @property
    def config(self) -> TableConfig:
        """What the table is fixed by, with the capacity that it has now."""
        return self._config.resized(self.ring.buffer_size)

    @property
    def generation_id(self) -> str:
        """Another one whenever row ids may stand for other rows than before, in this process or after it: a reset, a rewind, a loss of rows."""
        return self._ledger.generation_id

    @property
    def commit_seconds(self) -> Distribution:
        """How long the transactions of the journal take."""
        return self._ledger.commit_seconds

    @property
    def flush_seconds(self) -> Distribution:
        """How long rows take to the disk, where the durability asks for it."""
        return self._ledger.flush_seconds

    @property
    def slot_state(self) -> SlotState | None:
        """What is kept beside the rows; None before the first ones."""
        return self._rows.writer.state

    def advance(self, oldest: int) -> None:
        """Takes the rows below `oldest` out of the ring, because they were drawn often enough. Whoever draws rows knows that after a restart, too."""
        with self._inserts.alone(), self._lock.write():
            ring = self.ring
            if oldest > ring.oldest and not self._closed:
                self.storage.ring = replace(ring, oldest=min(oldest, ring.write_count))
                self._told.tell(self.ring)

    @property
    def durability(self) -> str:
        """What stored rows survive: none, process, interval or power."""
        return self._ledger.durability.level

    @lets_go
    def state(self) -> State:
        """The table's state, all of it at the same moment."""
        with self.shared:
            return self.state_now()

    def state_now(self) -> State:
        """The table's state. The caller holds `shared`."""
        self.check_open()
        ring, device = self.ring, self.storage.device
        return State(ring.buffer_size, ring.size, ring.pointer, ring.write_count, device, self.schema, self.durability, ring.insert_count)

    def check_version(self, version: int) -> None:
        """Passes where row ids of that version are still the same rows.

        Raises:
            TableChangedError: they are not.
        """
        if version != self._version:
            raise TableChangedError("the table was reset, rewound or dropped while it was read")

    def check_open(self) -> None:
        """Passes where the table can be used.

        Raises:
            StorageError: its disk failed.
            TableNotFoundError, ClosedError: it was dropped, or closed.
        """
        self._failure.check()
        self._check_not_closed()

    def _check_not_closed(self) -> None:
        if self._dropped:
            raise TableNotFoundError(f"table {self._config.name!r} was dropped")
        if self._closed:
            raise ClosedError("the buffer is closed")

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        self._lock.let_go()
        self._inserts.let_go()

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def insert(self, insert: Insert) -> tuple[int, bool]:
        """Copies rows in. They are checked before anything is touched, and survive what `durability` says when this returns.

        Returns:
            The id of the first row, and whether the rows had been stored already.

        Raises:
            SchemaError, CodecError: the rows differ from those before them, or cannot be sent.
            SequenceError: the insert id stands for other rows.
            ResourceExhaustedError: there is no space for the rows. Nothing was stored.
            StorageError: the disk failed. The table is of no use any more; its rows are safe in its directory.
        """
        self._inserts.put(insert)
        return insert.outcome

    def find(self, key: InsertKey) -> RememberedInsert | None:
        """What became of the insert with that key; None where it is new. It waits for inserts that are under way.

        Raises:
            SequenceError: its number stands for other rows.
        """
        with self._inserts.alone():
            self.check_open()
            return self._ledger.find(key)

    def _insert_all(self, inserts: list[Insert]) -> None:
        """Stores what several threads insert, together. Each of them finds in its `Insert` what became of it."""
        try:
            with self._failure.noted():
                self.check_open()
                fresh: list[Insert] = []
                for insert in inserts:
                    if self._is_fresh(insert, fresh):
                        fresh.append(insert)
                if fresh:
                    self._rows.write(fresh)
        except BaseException as error:
            for insert in inserts:
                insert.failed(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._reads_before = self._lock.reads

    def _joins(self, group: list[Insert], insert: Insert) -> bool:
        return joins(group, insert, readers=self._lock.reads != self._reads_before)

    def _is_fresh(self, insert: Insert, before: Sequence[Insert]) -> bool:
        """Whether rows are to be stored, after those `before`. If they were stored before, or cannot be, that is noted in the insert."""
        try:
            known = None if insert.key is None else self._ledger.find(insert.key)
            if known is None:
                self._told.listener.check(insert, before)  # Before the first rows fix the schema.
                self._rows.fit(insert.schema)
                return True
            insert.stored(known.first_row_id, before=True)
        except StorageError:
            raise
        except ReplayError as error:
            insert.error = error
        return False

    def _forget_selections(self) -> None:
        """Whoever selected rows before must not read them: their slots may be torn."""
        self._version += 1

    def _flush(self) -> None:
        """Brings to the disk what was stored so far. Others write and read meanwhile."""
        with self._flushing, self._failure.noted():
            with self.shared:
                if self._closed:
                    return
                self._failure.check()
                # The first rows make the files, while this does not keep inserts out.
                written = -1 if self.schema is None else self.ring.write_count
            if self._flusher is not None and written not in (-1, self._flusher.flushed_to):
                self._rows.writer.sync()
                with self._inserts.alone():
                    self._rows.writer.note_flushed(written)

    @contextmanager
    def watched(self, begin: Callable[[], W]) -> Iterator[W]:
        """Makes a watcher by `begin`, at a moment when nobody writes. Until the block ends, the watcher sees rows before they are overwritten.

        At that moment nobody reads either: draws and updates of priorities, which readers make, change what is kept beside the rows.
        The watcher does not see rows of a later version: after a reset, a rewind or a drop `reading` raises TableChangedError.
        """
        with self._inserts.alone(), self._lock.write():
            self.check_open()
            watcher, writer = begin(), self._rows.writer
            writer.overwriting = watcher.save_until
        try:
            yield watcher
        finally:
            with self._inserts.alone():
                writer.overwriting = None

    def tell_anew(self) -> None:
        """Tells the listener of its state and of all live rows again, as when a table is opened. It forgets what it knew beside them."""
        with self._alone():
            self._check_not_closed()
            state = self.slot_state
            if state is not None:
                self._told.begin_anew()
                self._told.listener.opened(state, self.ring)
                self._told.tell(self.ring)

    @contextmanager
    def reading(self, version: int) -> Iterator[None]:
        """Holds the lock as one of the readers. Errors: as `check_version`."""
        with self.shared:
            self.check_version(version)
            yield

    def acknowledged(self) -> list[AcknowledgedInsert]:
        """What became of the numbered inserts that are remembered. To be called while nobody writes."""
        return self._ledger.acknowledged()

    # -- another ring -------------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps everyone else out."""
        with self._flushing, self._inserts.alone(), self._lock.write():
            yield

    @lets_go
    def reset(self, buffer_size: int | None = None) -> None:
        """Forgets all rows and their schema, and takes another capacity, where one is given. The next row has a higher id than every row before."""
        with self._alone():
            self.check_open()
            self._restart(buffer_size or self.ring.buffer_size)

    def _restart(self, buffer_size: int) -> None:
        ring, old = self.ring.restart(buffer_size), self._rows
        new = self._made(old.storage.device, ring, old.number + 1)
        self._note_ring(ring, new.number, None)
        self._take_up(new)
        failpoint("reset-after-journal")
        old.storage.discard()
        self._told.tell(ring)
        self._told.listener.emptied(ring)

    @lets_go
    def rewind(self, buffer_size: int, size: int, write_count: int) -> None:
        """Makes the row ids ``[write_count - size, write_count)`` the live rows again; an empty buffer takes the capacity `buffer_size`.

        Raises:
            MissingRowsError: some of those rows are not stored. Nothing changes.
            InvalidArgumentError: a number is out of its range.
        """
        check_window(buffer_size, size, write_count)
        with self._alone():
            self.check_open()
            ring = self.ring
            if buffer_size != ring.buffer_size and (size or ring.size):
                raise MissingRowsError(f"buffer_size ({buffer_size}) must be {ring.buffer_size}: a buffer that holds rows keeps its capacity")
            rewound = replace(ring, buffer_size=buffer_size).rewind(size, write_count)
            if buffer_size != ring.buffer_size:
                self._restart(buffer_size)
            if self._flusher is not None:
                with self._failure.noted():
                    self._rows.writer.sync()
            self._note_ring(rewound, self._rows.number, self.schema)
            self._version += 1
            self.storage.ring = rewound
            self._told.tell(rewound)
            if self._flusher is not None:
                self._flusher.flushed_to = write_count

    def _note_ring(self, ring: Ring, generation: int, schema: Schema | None) -> None:
        """Notes in the ledger that the table has another ring, which it is to take up next."""
        try:
            with self._failure.noted():
                self._ledger.restart(ring, generation, schema, new_generation_id())
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C: it may be noted, or not.
                self._ledger.restart(self.ring, self._rows.number, self.schema)
            raise

    # -- the end ------------------------------------------------------------------------------------------------------------------------------

    @lets_go
    def close(self) -> None:
        """Gives the memory back, and the space of rows that lie in no directory. Closing twice is allowed; any other call is then a ClosedError."""
        if self._flusher is not None:
            self._flusher.close()
        with self._alone():
            closing, self._closed = not self._closed, True
            self._version += 1
            try:
                if closing:
                    self._end_ledger()
            finally:
                self._release()
                if self._directory is not None:
                    self._directory.close()

    def _release(self) -> None:
        self.storage.release()
        self._rows.writer.state = None
        self._told.listener.closed()

    def _end_ledger(self) -> None:
        if self._failure.happened:
            return  # What is on the disk is as it would be after a kill.
        if self._ledger.durability.reaches_disk:
            self._rows.writer.sync()
        self._ledger.close(self.ring)

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
            removed = None if self._directory is None else self._directory.take_away()
            self._closed = self._dropped = True
            self._version += 1
            self._release()
            # Before the name is free: SQLite removes its log by the name that it had.
            self._ledger.abandon()
            if self._directory is not None:
                self._directory.close()
        if self._flusher is not None:
            self._flusher.close()
        return removed
