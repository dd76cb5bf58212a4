"""What makes the rows of a table meaningful, and survives the process: a SQLite database beside them, in WAL mode.

An insert into a full ring takes these steps:

1. `retire`: the ids of the rows that it overwrites leave the window.
2. The rows are copied.
3. `commit`: the new ids enter the window, and the insert's number is noted.
4. The insert is acknowledged.

Whatever breaks in between, the window ``[oldest, write_count)`` holds whole rows alone.

Only this module writes the database, over one connection. The connection is exclusive: a second process cannot open the database.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tdreplay.errors import FailedPreconditionError, ResourceExhaustedError, StorageError
from tdreplay.limits import SEQUENCE_WINDOW
from tdreplay.processes import keep_for_ever
from tdreplay.schema import Schema
from tdreplay_server.durability.generation_id import new_generation_id
from tdreplay_server.durability.journal_check import NewChecksums
from tdreplay_server.durability.journal_format import JOURNAL, Execute, Settings, create_tables, migrate
from tdreplay_server.durability.journal_state import connect, read_journal
from tdreplay_server.durability.ledger import MAX_WRITERS, AcknowledgedInsert, Ledger, RememberedInsert, WriterMemory, WrittenInsert
from tdreplay_server.durability.levels import Durability
from tdreplay_server.durability.slot_state import Kept
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.disk import boot_id
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import write_file

__all__ = ["Journal", "create_journal"]

NAME = "the journal"
"""What messages call it."""
COMMITS_TO_COMPACT = 1000
"""Commits after which the write-ahead log, some 3 MB, is copied into the database. If the database is larger than that, it takes more of them."""
COMMIT_BYTES = 3 << 10
"""Bytes that a commit takes in the log."""
ACKNOWLEDGE = "INSERT OR REPLACE INTO acknowledged (writer, slot, sequence, digest, first_row_id, rows) VALUES (?, ?, ?, ?, ?, ?)"


def create_journal(directory: Path, settings: Settings, ring: Ring, acknowledged: Sequence[AcknowledgedInsert] = ()) -> None:
    """Makes the journal of a table, on the disk.

    Args:
        directory: The directory of the table.
        settings: What the table is fixed by, and the schema of its rows.
        ring: The live rows.
        acknowledged: What became of numbered inserts.
    """
    database = directory / JOURNAL
    with disk_errors(NAME):
        write_file(database, b"")  # Before SQLite makes it: its log gets the mode that the database has.
    with disk_errors(NAME), closing(connect(database)) as connection:
        create_tables(connection)
        connection.execute("BEGIN")
        replace(settings, insert_offset=ring.insert_offset, generation_id=new_generation_id()).write(connection.execute)
        connection.execute("INSERT INTO ring (oldest, write_count) VALUES (?, ?)", (ring.oldest, ring.write_count))
        connection.executemany(ACKNOWLEDGE, acknowledged)
        connection.execute("COMMIT")
        with NewChecksums(database) as checksums:
            _compact(connection, checksums, None, durable=True)  # Nobody else knows of it yet: the locks do not matter.


class Journal(Ledger):
    """The journal of a table that is in use.

    Attributes:
        state: What the journal said when it was opened.
        kept: What is kept beside the rows.

    Args:
        directory: The directory of the table.
        durability: What a commit survives. With the level interval, `retired` runs ahead of the ring.
        kept: What is kept beside the rows from now on. Nothing: as before.

    Raises:
        CorruptDataError, FailedPreconditionError: as `read_journal`.
    """

    def __init__(self, directory: Path, durability: Durability, kept: Kept) -> None:
        super().__init__()
        self.state = read_journal(directory, torn_end=True)
        self.durability = durability
        self._database = directory / JOURNAL
        self._commits = self._new_writers = 0
        self._uncompacted = False
        self.retired = self.state.ring.oldest
        self.generation_id = self.state.settings.generation_id
        self.kept = kept if any(kept) else self.state.settings.kept
        with disk_errors(NAME):
            self._connection = connect(self._database)
            _keep_for_ever(self._connection)
            self._file = os.open(self._database, os.O_RDONLY | os.O_CLOEXEC)
            self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability.level]}")
            self._compact()
            self._settings = replace(self.state.settings, level=durability.level, boot=boot_id(), open=True, kept=self.kept)
            with self._durably() as execute:
                migrate(execute)
                self._settings.write(execute)
            self._forget_writers()

    def retire(self, oldest: int) -> None:
        with self._transaction() as execute:
            execute("UPDATE ring SET oldest = ?", (oldest,))
        self.retired = oldest

    def commit(self, ring: Ring, inserts: Sequence[WrittenInsert]) -> None:
        if self._new_writers >= MAX_WRITERS // 4:
            self._forget_writers()
        with self._transaction() as execute:
            execute("UPDATE ring SET oldest = max(oldest, ?), write_count = ?", (ring.oldest, ring.write_count))
            for insert in inserts:
                _record(execute, insert, ring.buffer_size)
        super().commit(ring, inserts)
        self._commits += len(inserts)
        if self._commits >= max(COMMITS_TO_COMPACT, os.fstat(self._file).st_size // COMMIT_BYTES):
            self._compact_if_there_is_room()

    def flushed(self, write_count: int, oldest: int) -> None:
        with self._durably() as execute:
            execute("DELETE FROM unflushed WHERE first_row_id < ?", (write_count,))
            execute("UPDATE ring SET oldest = ?", (oldest,))
        self.retired = oldest

    def restart(self, ring: Ring, generation: int, schema: Schema | None, generation_id: str | None = None) -> None:
        settings = replace(
            self._settings,
            config=self._settings.config.resized(ring.buffer_size),
            generation=generation,
            generation_id=generation_id or self.generation_id,
            schema=schema,
            insert_offset=ring.insert_offset,
        )
        with self._durably() as execute:
            settings.write(execute)
            execute("UPDATE ring SET oldest = ?, write_count = ?", (ring.oldest, ring.write_count))
            execute("DELETE FROM unflushed")
        self._settings = settings
        super().restart(ring, generation, schema, generation_id)

    def forget_from(self, ring: Ring) -> None:
        """Takes back what was acknowledged but is lost, after a loss of power: its writers may send it again."""
        lost = ring.write_count < self.state.ring.write_count
        settings = replace(self._settings, generation_id=new_generation_id() if lost else self.generation_id)
        with self._durably() as execute:
            settings.write(execute)
            execute("UPDATE ring SET oldest = ?, write_count = ?", (ring.oldest, ring.write_count))
            execute("DELETE FROM acknowledged WHERE first_row_id + rows > ?", (ring.write_count,))
            execute("DELETE FROM unflushed")
        self._settings, self.generation_id = settings, settings.generation_id

    def acknowledged(self) -> list[AcknowledgedInsert]:
        with disk_errors(NAME):
            found = self._connection.execute("SELECT writer, slot, sequence, digest, first_row_id, rows FROM acknowledged")
            return [AcknowledgedInsert(*row) for row in found]

    def close(self, ring: Ring) -> None:
        """Notes that the table was closed with these live rows, and closes the journal."""
        with self._durably() as execute:
            execute("DELETE FROM unflushed")
            execute("UPDATE ring SET oldest = ?", (ring.oldest,))
            replace(self._settings, open=False).write(execute)
        self.release()

    def abandon(self) -> None:
        """Closes the journal of a table whose directory is being removed. What it holds does not matter any more."""
        with suppress(sqlite3.Error):
            self._connection.close()
        os.close(self._file)

    def release(self) -> None:
        """Closes the journal as it is."""
        self._compact()
        self._connection.close()
        os.close(self._file)

    def _note(self, writer_id: str, insert: RememberedInsert) -> None:
        super()._note(writer_id, insert)
        if len(self._writers[writer_id].inserts) == 1:
            self._new_writers += 1

    def _remembered(self, writer_id: str) -> WriterMemory:
        writer = WriterMemory()
        with disk_errors(NAME):
            for row in self._connection.execute("SELECT sequence, digest, first_row_id, rows FROM acknowledged WHERE writer = ?", (writer_id,)):
                writer.add(RememberedInsert(*row))
        return writer

    def _forget_writers(self) -> None:
        self._new_writers = 0
        query = (
            "DELETE FROM acknowledged WHERE writer NOT IN (SELECT writer FROM acknowledged GROUP BY writer ORDER BY max(first_row_id) DESC LIMIT ?)"
        )
        with self._transaction() as execute:
            execute(query, (MAX_WRITERS,))

    @contextmanager
    def _durably(self) -> Iterator[Execute]:
        """A transaction that is on the disk when it ends, whatever the level."""
        self._connection.execute("PRAGMA synchronous=FULL")
        try:
            with self._transaction() as execute:
                yield execute
        finally:
            self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[self.durability.level]}")

    @contextmanager
    def _transaction(self) -> Iterator[Execute]:
        with disk_errors(NAME), self.commit_seconds.timed():
            self._roll_back()  # An interrupt (Ctrl-C) may have left one open.
            if self._uncompacted:
                self._compact()
            self._uncompacted = True
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection.execute
                self._connection.execute("COMMIT")
                self._uncompacted = False
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _compact_if_there_is_room(self) -> None:
        """The rows are stored: a full disk, or no descriptor that is left, only lets the log grow."""
        try:
            self._compact()
        except (ResourceExhaustedError, FailedPreconditionError) as error:
            log.warning("the journal cannot be compacted", journal=str(self._database), error=str(error))

    def _compact(self) -> None:
        # A transaction that broke off, or a killed server, may have left frames at the end of the log. They must not be overwritten in part, and
        # nothing may be committed before a compaction is complete: what is left would look broken.
        self._commits = 0
        with disk_errors(NAME), NewChecksums(self._database) as checksums:
            self._uncompacted = True
            _compact(self._connection, checksums, self._file, durable=self.durability.reaches_disk)
        self._uncompacted = False


def _record(execute: Execute, insert: WrittenInsert, buffer_size: int) -> None:
    """Notes what an insert became, within a transaction."""
    if insert.key is not None:
        (writer_id, sequence), digest = insert.key
        execute(ACKNOWLEDGE, (writer_id, sequence % SEQUENCE_WINDOW, sequence, digest, insert.first_row_id, insert.rows))
    if insert.unflushed_digest is not None:
        kept = min(insert.rows, buffer_size)
        execute(
            "INSERT INTO unflushed (first_row_id, rows, digest) VALUES (?, ?, ?)",
            (insert.first_row_id + insert.rows - kept, kept, insert.unflushed_digest),
        )


_SYNCHRONOUS = {"process": "OFF", "interval": "NORMAL", "power": "FULL"}


def _keep_for_ever(connection: sqlite3.Connection) -> None:
    """Keeps a connection from being closed by the garbage collector, or at the interpreter's end.

    A connection that closes copies the log into the database, for which the checksums then do not vouch. One that is not closed leaves what a kill
    leaves. (From Python 3.12 on SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE would do.)
    """
    keep_for_ever(connection)


def _compact(connection: sqlite3.Connection, checksums: NewChecksums, file: int | None, *, durable: bool) -> None:
    """Copies the write-ahead log into the database and empties it. At each step, log and checksums together vouch for every byte."""
    _copy_log(connection, "FULL")
    if durable and file is not None:
        os.fsync(file)  # SQLite did, if it copied anything: what a journal of another level copied may not be on the disk yet.
    failpoint("compact-after-copy")
    checksums.write(file, durable=durable)
    failpoint("compact-after-checksums")
    _copy_log(connection, "TRUNCATE")
    if durable:
        checksums.sync_directory()


def _copy_log(connection: sqlite3.Connection, mode: str) -> None:
    (busy, _, _) = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    if busy:
        raise StorageError("the journal cannot be compacted: another process reads it")
