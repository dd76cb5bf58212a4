"""What a journal says of its table, read without opening it: nothing in the table's directory changes."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tdreplay.errors import CodecError, CorruptDataError, InvalidArgumentError, SchemaError
from tdreplay_server.durability.journal_check import check_journal
from tdreplay_server.durability.journal_format import JOURNAL, Settings, check_format, migrate
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.disk import boot_id
from tdreplay_server.system.disk_errors import disk_errors, unreadable
from tdreplay_server.system.logs import log

__all__ = ["JournalState", "connect", "read_journal"]

COPY = "a copy of the journal in the directory for temporary files"
"""What messages call it."""


@dataclass(frozen=True)
class JournalState:
    """What a journal says of its table.

    Attributes:
        settings: What the table is fixed by, its schema, and who had it last.
        ring: The live rows.
        writers: The number of writers that it remembers.
        unflushed: The blocks that the last server did not flush to the disk, of the level interval: (first row id, rows, digest), by ascending id.
    """

    settings: Settings
    ring: Ring
    writers: int
    unflushed: tuple[tuple[int, int, int], ...]

    @property
    def rebooted(self) -> bool:
        """Whether the last server died, and the machine was started anew since then."""
        return self.settings.open and self.settings.boot != boot_id()


def read_journal(directory: Path, *, torn_end: bool = False) -> JournalState:
    """What the journal of a table says, which must not be open. Its bytes are checked first, and none of them changes.

    Args:
        directory: The directory of the table.
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
    if found.settings.level not in ("interval", "power"):
        raise error
    log.warning("the journal ends in what was not acknowledged, as after a loss of power", journal=str(database), details=str(error))
    return found


def _read(database: Path) -> JournalState:
    # A copy: SQLite would work on the log of the original.
    with disk_errors(COPY), tempfile.TemporaryDirectory(prefix="tdreplay-journal-") as scratch:
        for file in database.parent.glob(f"{JOURNAL}*"):
            shutil.copyfile(file, Path(scratch) / file.name)
        try:
            with closing(connect(Path(scratch) / JOURNAL)) as connection:
                return _state(connection, database)
        except sqlite3.DatabaseError as error:
            raise unreadable(error, str(database)) from error
        except (SchemaError, CodecError, InvalidArgumentError, ValueError, KeyError) as error:
            raise CorruptDataError(f"{database} cannot be read: {error}") from error


def _state(connection: sqlite3.Connection, database: Path) -> JournalState:
    """What the copy of a journal says. The copy gets this version's format first, so that there is one way to read it."""
    check_format(connection, database)
    found = connection.execute("PRAGMA integrity_check").fetchall()
    if found != [("ok",)]:
        raise CorruptDataError(f"{database} is broken: {found[0][0]}")
    migrate(connection.execute)
    settings = Settings.read(connection)
    oldest, write_count = connection.execute("SELECT oldest, write_count FROM ring").fetchone()
    (writers,) = connection.execute("SELECT count(DISTINCT writer) FROM acknowledged").fetchone()
    unflushed = connection.execute("SELECT first_row_id, rows, digest FROM unflushed ORDER BY first_row_id")
    ring = Ring(settings.config.buffer_size, min(oldest, write_count), write_count, settings.insert_offset)
    return JournalState(settings, ring, writers, tuple(unflushed))


def connect(database: Path) -> sqlite3.Connection:
    """The one connection to a journal. The log is copied into the database when this module says so, and not before."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    # What SQLite sorts stays in memory: a temporary file might find no descriptor, or no space.
    for pragma in ("locking_mode=EXCLUSIVE", "wal_autocheckpoint=0", "cache_spill=OFF", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection
