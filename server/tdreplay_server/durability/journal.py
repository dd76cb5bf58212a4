"""What makes the rows of a table meaningful, and survives the process: a SQLite database beside them, in WAL mode.

An insert into a full ring goes: `retire` (the ids of the rows that it overwrites leave the window), the rows, `commit` (the new ids enter it, and the
block's number is noted), the acknowledgement. Whatever breaks in between, the window ``[oldest, write_count)`` holds whole rows alone.

Nothing but this module writes the database, over one connection, which is exclusive: a second process cannot open it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdreplay.errors import CodecError, CorruptDataError, FailedPreconditionError, ResourceExhaustedError, SchemaError, StorageError
from tdreplay.limits import SEQUENCE_WINDOW
from tdreplay.processes import keep_for_ever
from tdreplay.schema import Schema
from tdreplay_server.durability.journal_check import NewChecksums, check_journal
from tdreplay_server.durability.ledger import MAX_WRITERS, Acknowledged, Entry, Ledger, Window, Written
from tdreplay_server.durability.levels import Durability
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.disk import boot_id
from tdreplay_server.system.disk_errors import disk_errors, unreadable
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import write_file

__all__ = ["FORMAT", "JOURNAL", "Journal", "JournalState", "create_journal", "read_journal"]

FORMAT = 2
"""Of the directory of a table. A newer one is refused. Format 1, which did not count inserts, is brought to this one when a table is opened."""
JOURNAL = "journal.sqlite"
NAME, COPY = "the journal", "a copy of the journal in the directory for temporary files"
"""What messages call them."""
COMMITS_TO_COMPACT = 1000
"""After so many commits the write-ahead log, of some 3 MB, is copied into the database; after more where that is larger than the log."""
COMMIT_BYTES = 3 << 10
"""That a commit takes in the log."""
PAGE_BYTES = 1024  # The smallest that suits: each commit writes two or three pages.

TABLES = """
CREATE TABLE settings (
    buffer_size INTEGER NOT NULL, generation INTEGER NOT NULL, schema TEXT, level TEXT NOT NULL, boot TEXT NOT NULL, open INTEGER NOT NULL,
    insert_offset INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE ring (oldest INTEGER NOT NULL, write_count INTEGER NOT NULL);
CREATE TABLE acknowledged (
    writer TEXT, slot INTEGER, sequence INTEGER NOT NULL, digest INTEGER NOT NULL, first_row_id INTEGER NOT NULL, rows INTEGER NOT NULL,
    PRIMARY KEY (writer, slot)
) WITHOUT ROWID;
CREATE TABLE unflushed (first_row_id INTEGER PRIMARY KEY, rows INTEGER NOT NULL, digest INTEGER NOT NULL);
"""

FROM_FORMAT_1 = ("ALTER TABLE settings ADD COLUMN insert_offset INTEGER NOT NULL DEFAULT 0", f"PRAGMA user_version={FORMAT}")
"""What makes a journal of format 1 one of this version, in one transaction."""


@dataclass(frozen=True)
class JournalState:
    """What a journal says of its table.

    Attributes:
        ring: the live rows.
        generation: counts the table's resets; the rows lie in the directory of this number.
        schema: None while there is none.
        level: of durability, of the last server.
        was_open: it was not closed: its server died.
        rebooted: and since then the machine was started anew.
        writers: that it remembers.
        unflushed: blocks that the last server did not flush to the disk, of the level interval: (first row id, rows, digest).
    """

    ring: Ring
    generation: int
    schema: Schema | None
    level: str
    was_open: bool
    rebooted: bool
    writers: int
    unflushed: tuple[tuple[int, int, int], ...]


def create_journal(directory: Path, ring: Ring, schema: Schema | None = None, acknowledged: Sequence[Acknowledged] = ()) -> None:
    """Makes the journal of a table, on the disk.

    Args:
        directory: of the table.
        ring: its live rows.
        schema: of its rows, which then lie in the directory of generation 1.
        acknowledged: as `Journal.acknowledged` gave it.
    """
    database = directory / JOURNAL
    text = None if schema is None else json.dumps(schema.to_json())
    with disk_errors(NAME):
        write_file(database, b"")  # Before SQLite makes it: its log gets the mode that the database has.
    with disk_errors(NAME), closing(_connect(database)) as connection:
        connection.executescript(f"PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA user_version={FORMAT}; {TABLES}")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO settings VALUES (?, 1, ?, 'none', '', 0, ?)", (ring.buffer_size, text, ring.insert_offset))
        connection.execute("INSERT INTO ring VALUES (?, ?)", (ring.oldest, ring.write_count))
        connection.executemany("INSERT INTO acknowledged VALUES (?, ?, ?, ?, ?, ?)", acknowledged)
        connection.execute("COMMIT")
        with NewChecksums(database) as checksums:
            _compact(connection, checksums, None, durable=True)  # Nobody else knows of it yet: the locks do not matter.


def read_journal(directory: Path, *, torn_end: bool = False) -> JournalState:
    """What the journal of a table says, which must not be open. Its bytes are checked first, and none of them changes.

    Args:
        directory: of the table.
        torn_end: whether the end of the log may be broken, where the last server flushed it to the disk: after a loss of power the disk may have a
            part of what was not acknowledged yet.

    Raises:
        FailedPreconditionError: a newer version wrote it.
        CorruptDataError: it is missing, or not what was written.
    """
    database = directory / JOURNAL
    if not database.is_file():
        raise CorruptDataError(f"{database} is missing: {directory} is not the directory of a table")
    try:
        check_journal(database)
    except CorruptDataError as error:
        if not torn_end:
            raise
        return _torn(database, error)
    return _read(database)


def _torn(database: Path, error: CorruptDataError) -> JournalState:
    check_journal(database, torn_end=True)
    found = _read(database)
    if found.level not in ("interval", "power"):
        raise error
    log.warning("the journal ends in what was not acknowledged, as after a loss of power", journal=str(database), details=str(error))
    return found


def _read(database: Path) -> JournalState:
    # A copy: SQLite would work on the log of the original.
    with disk_errors(COPY), tempfile.TemporaryDirectory(prefix="tdreplay-journal-") as scratch:
        for file in database.parent.glob(f"{JOURNAL}*"):
            shutil.copyfile(file, Path(scratch) / file.name)
        try:
            with closing(_connect(Path(scratch) / JOURNAL)) as connection:
                return _state(connection, database)
        except sqlite3.DatabaseError as error:
            raise unreadable(error, str(database)) from error
        except (SchemaError, CodecError) as error:
            raise CorruptDataError(f"{database} cannot be read: {error}") from error


def _state(connection: sqlite3.Connection, database: Path) -> JournalState:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise FailedPreconditionError(
            f"{database} has format {version}, and this version knows {FORMAT}: use the version that wrote it, or a newer one"
        )
    found = connection.execute("PRAGMA integrity_check").fetchall()
    if found != [("ok",)]:
        raise CorruptDataError(f"{database} is broken: {found[0][0]}")
    settings = _named(connection.execute("SELECT * FROM settings"))
    oldest, write_count = connection.execute("SELECT oldest, write_count FROM ring").fetchone()
    (writers,) = connection.execute("SELECT count(DISTINCT writer) FROM acknowledged").fetchone()
    return JournalState(
        ring=Ring(settings["buffer_size"], min(oldest, write_count), write_count, settings.get("insert_offset", 0)),
        generation=settings["generation"],
        schema=None if settings["schema"] is None else Schema.from_json(json.loads(settings["schema"])),
        level=settings["level"],
        was_open=bool(settings["open"]),
        rebooted=bool(settings["open"]) and settings["boot"] != boot_id(),
        writers=writers,
        unflushed=tuple(connection.execute("SELECT first_row_id, rows, digest FROM unflushed ORDER BY first_row_id")),
    )


def _named(found: sqlite3.Cursor) -> dict[str, Any]:
    """The one row of a query: column -> value. A journal of an older format has fewer of them."""
    return dict(zip((column for column, *_ in found.description), found.fetchone(), strict=True))


class Journal(Ledger):
    """The journal of a table that is in use.

    Attributes:
        state: as it was found.

    Args:
        directory: of the table.
        durability: what a commit survives. Of the level interval, `retired` runs ahead of the ring.

    Raises:
        CorruptDataError, FailedPreconditionError: as `read_journal`.
    """

    def __init__(self, directory: Path, durability: Durability) -> None:
        super().__init__()
        self.state = read_journal(directory, torn_end=True)
        self.durability = durability
        self._database = directory / JOURNAL
        self._commits = self._new_writers = 0
        self._uncompacted = False
        self.retired = self.state.ring.oldest
        with disk_errors(NAME):
            self._connection = _connect(self._database)
            _keep_for_ever(self._connection)
            self._file = os.open(self._database, os.O_RDONLY | os.O_CLOEXEC)
            self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability.level]}")
            self._compact()
            self._migrate()
            self._forget_writers()
            with self._durably():
                self._connection.execute("UPDATE settings SET level = ?, boot = ?, open = 1", (durability.level, boot_id()))

    def _migrate(self) -> None:
        if self._connection.execute("PRAGMA user_version").fetchone() == (1,):
            with self._durably() as execute:
                for statement in FROM_FORMAT_1:
                    execute(statement)

    def retire(self, oldest: int) -> None:
        with self._transaction() as execute:
            execute("UPDATE ring SET oldest = ?", (oldest,))
        self.retired = oldest

    def commit(self, ring: Ring, blocks: Sequence[Written]) -> None:
        if self._new_writers >= MAX_WRITERS // 4:
            self._forget_writers()
        with self._transaction() as execute:
            execute("UPDATE ring SET oldest = max(oldest, ?), write_count = ?", (ring.oldest, ring.write_count))
            for block in blocks:
                _record(execute, block, ring.buffer_size)
        super().commit(ring, blocks)
        self._commits += len(blocks)
        if self._commits >= max(COMMITS_TO_COMPACT, os.fstat(self._file).st_size // COMMIT_BYTES):
            self._compact_if_there_is_room()

    def flushed(self, write_count: int, oldest: int) -> None:
        with self._durably() as execute:
            execute("DELETE FROM unflushed WHERE first_row_id < ?", (write_count,))
            execute("UPDATE ring SET oldest = ?", (oldest,))
        self.retired = oldest

    def restart(self, ring: Ring, generation: int, schema: Schema | None) -> None:
        text = None if schema is None else json.dumps(schema.to_json())
        with self._durably() as execute:
            settings = (ring.buffer_size, generation, text, ring.insert_offset)
            execute("UPDATE settings SET buffer_size = ?, generation = ?, schema = ?, insert_offset = ?", settings)
            execute("UPDATE ring SET oldest = ?, write_count = ?", (ring.oldest, ring.write_count))
            execute("DELETE FROM unflushed")
        self.retired = ring.oldest

    def forget_from(self, ring: Ring) -> None:
        """Takes back what was acknowledged but is lost, after a loss of power: its writers may send it again."""
        with self._durably() as execute:
            execute("UPDATE ring SET oldest = ?, write_count = ?", (ring.oldest, ring.write_count))
            execute("DELETE FROM acknowledged WHERE first_row_id + rows > ?", (ring.write_count,))
            execute("DELETE FROM unflushed")

    def acknowledged(self) -> list[Acknowledged]:
        with disk_errors(NAME):
            return self._connection.execute("SELECT writer, slot, sequence, digest, first_row_id, rows FROM acknowledged").fetchall()

    def close(self, ring: Ring) -> None:
        """Notes that the table was closed with these live rows, and closes the journal."""
        with self._durably() as execute:
            execute("DELETE FROM unflushed")
            execute("UPDATE ring SET oldest = ?", (ring.oldest,))
            execute("UPDATE settings SET open = 0")
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

    def _note(self, writer_id: str, entry: Entry) -> None:
        super()._note(writer_id, entry)
        if len(self._windows[writer_id].entries) == 1:
            self._new_writers += 1

    def _remembered(self, writer_id: str) -> Window:
        window = Window()
        with disk_errors(NAME):
            for row in self._connection.execute("SELECT sequence, digest, first_row_id, rows FROM acknowledged WHERE writer = ?", (writer_id,)):
                window.add(Entry(*row))
        return window

    def _forget_writers(self) -> None:
        self._new_writers = 0
        query = (
            "DELETE FROM acknowledged WHERE writer NOT IN (SELECT writer FROM acknowledged GROUP BY writer ORDER BY max(first_row_id) DESC LIMIT ?)"
        )
        with self._transaction() as execute:
            execute(query, (MAX_WRITERS,))

    @contextmanager
    def _durably(self) -> Iterator[Any]:
        """A transaction that is on the disk when it ends, whatever the level."""
        self._connection.execute("PRAGMA synchronous=FULL")
        try:
            with self._transaction() as execute:
                yield execute
        finally:
            self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[self.durability.level]}")

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with disk_errors(NAME):
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


def _record(execute: Any, block: Written, buffer_size: int) -> None:
    """Notes what a block became, within a transaction."""
    if (number := block.number) is not None:
        row = (number.writer_id, number.sequence % SEQUENCE_WINDOW, number.sequence, number.digest, block.first_row_id, block.rows)
        execute("INSERT OR REPLACE INTO acknowledged VALUES (?, ?, ?, ?, ?, ?)", row)
    if block.digest is not None:
        kept = min(block.rows, buffer_size)
        execute("INSERT INTO unflushed VALUES (?, ?, ?)", (block.first_row_id + block.rows - kept, kept, block.digest))


_SYNCHRONOUS = {"process": "OFF", "interval": "NORMAL", "power": "FULL"}


def _connect(database: Path) -> sqlite3.Connection:
    """The one connection to a journal. The log is copied into the database when this module says so, and not before."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    # What SQLite sorts stays in memory: a temporary file might find no descriptor, or no space.
    for pragma in ("locking_mode=EXCLUSIVE", "wal_autocheckpoint=0", "cache_spill=OFF", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


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
