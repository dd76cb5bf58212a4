"""The tables of a journal's SQLite database: the one place that knows their columns, and how older formats become this one.

Format 1 did not count inserts. Formats 1 and 2 knew of a table's settings the capacity alone, format 3 no numbers of samplers and rate limiters, and
format 4 no trajectories.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tdreplay.errors import FailedPreconditionError
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.slot_state import NOTHING_KEPT, Kept

__all__ = ["FORMAT", "JOURNAL", "Execute", "Settings", "check_format", "create_tables", "migrate"]

FORMAT = 5
"""The format of a table's directory. A newer one is refused; an older one becomes this one when a table is opened."""
JOURNAL = "journal.sqlite"
"""The name of the database, in the directory of a table."""
PAGE_BYTES = 1024  # The smallest that suits: each commit writes two or three pages.

Execute: TypeAlias = "Callable[..., Any]"
"""Executes a statement of SQL, as `sqlite3.Connection.execute` does."""

SETTINGS_3 = """CREATE TABLE settings (
    config TEXT NOT NULL, generation INTEGER NOT NULL, schema TEXT, insert_offset INTEGER NOT NULL,
    level TEXT NOT NULL, boot TEXT NOT NULL, open INTEGER NOT NULL
)"""
TABLES = """CREATE TABLE settings (
    config TEXT NOT NULL, kept TEXT NOT NULL, generation INTEGER NOT NULL, generation_id TEXT NOT NULL, schema TEXT, insert_offset INTEGER NOT NULL,
    level TEXT NOT NULL, boot TEXT NOT NULL, open INTEGER NOT NULL
);
CREATE TABLE ring (oldest INTEGER NOT NULL, write_count INTEGER NOT NULL);
CREATE TABLE acknowledged (
    writer TEXT, slot INTEGER, sequence INTEGER NOT NULL, digest INTEGER NOT NULL, first_row_id INTEGER NOT NULL, rows INTEGER NOT NULL,
    PRIMARY KEY (writer, slot)
) WITHOUT ROWID;
CREATE TABLE unflushed (first_row_id INTEGER PRIMARY KEY, rows INTEGER NOT NULL, digest INTEGER NOT NULL);
"""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: ("ALTER TABLE settings ADD COLUMN insert_offset INTEGER NOT NULL DEFAULT 0",),
    2: (
        "ALTER TABLE settings RENAME TO settings_2",
        SETTINGS_3,
        """INSERT INTO settings (config, generation, schema, insert_offset, level, boot, open)
           SELECT '{"buffer_size": ' || buffer_size || '}', generation, schema, insert_offset, level, boot, open FROM settings_2""",
        "DROP TABLE settings_2",
    ),
    # Tables of format 3 draw uniformly, and let nobody wait. Not all of them say where their rows lie: in these files, so on the CPU.
    3: (
        "ALTER TABLE settings ADD COLUMN generation_id TEXT NOT NULL DEFAULT ''",
        """ALTER TABLE settings ADD COLUMN kept TEXT NOT NULL DEFAULT '{"columns": [], "values": []}'""",
        "UPDATE settings SET generation_id = lower(hex(randomblob(8)))",
        """UPDATE settings SET config = json_object(
            'buffer_size', json_extract(config, '$.buffer_size'), 'storing_device', 'cpu', 'sampler', json_object('name', 'uniform'),
            'rate_limiter', json_object('name', 'none'), 'max_times_sampled', 0)""",
    ),
    4: ("UPDATE settings SET config = json_set(config, '$.trajectories', json('false'))",),
}
"""Format -> what makes it the next one."""


def create_tables(connection: sqlite3.Connection) -> None:
    """Makes the tables of a new journal, empty."""
    connection.executescript(f"PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA user_version={FORMAT}; {TABLES}")


def check_format(connection: sqlite3.Connection, database: Path) -> None:
    """Passes where this version knows the format of a journal.

    Raises:
        FailedPreconditionError: a newer version wrote it.
    """
    version = _format(connection.execute)
    if version > FORMAT:
        raise FailedPreconditionError(
            f"{database} has format {version}, and this version knows {FORMAT}: use the version that wrote it, or a newer one"
        )


def migrate(execute: Execute) -> None:
    """Gives a journal this version's format, within a transaction; one that has it stays as it is."""
    version = _format(execute)
    for older in range(version, FORMAT):
        for statement in MIGRATIONS[older]:
            execute(statement)
    if version != FORMAT:
        execute(f"PRAGMA user_version={FORMAT}")


def _format(execute: Execute) -> int:
    (version,) = execute("PRAGMA user_version").fetchone()
    return int(version)


@dataclass(frozen=True)
class Settings:
    """The one row of the table ``settings``.

    Attributes:
        config: What the table is made with. Its name is '' here.
        kept: What is kept beside the rows.
        generation: The number of the directory with the rows; it counts the table's resets, from 1.
        generation_id: Another one whenever row ids may stand for other rows than before; see `RowLog.generation_id`.
        schema: The schema of the rows; None before the first ones.
        insert_offset: As in `Ring`.
        level: The level of durability of the last server; 'none' where there was none.
        boot: Which start of the machine that server saw.
        open: Whether a server has the table, or died while it had.
    """

    config: TableConfig
    kept: Kept = NOTHING_KEPT
    generation: int = 1
    generation_id: str = ""
    schema: Schema | None = None
    insert_offset: int = 0
    level: str = "none"
    boot: str = ""
    open: bool = False

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Settings:
        """The settings of a journal of this version's format.

        Raises:
            SchemaError, CodecError, ValueError, KeyError: they are not what `write` writes.
        """
        cursor = connection.cursor()
        cursor.row_factory = sqlite3.Row
        row = cursor.execute("SELECT * FROM settings").fetchone()
        return cls(
            config=TableConfig.from_json(json.loads(row["config"])),
            kept=Kept.from_json(json.loads(row["kept"])),
            generation=row["generation"],
            generation_id=row["generation_id"],
            schema=None if row["schema"] is None else Schema.from_json(json.loads(row["schema"])),
            insert_offset=row["insert_offset"],
            level=row["level"],
            boot=row["boot"],
            open=bool(row["open"]),
        )

    def write(self, execute: Execute) -> None:
        """Makes these the settings of a journal, within a transaction."""
        schema = None if self.schema is None else json.dumps(self.schema.to_json())
        execute("DELETE FROM settings")
        execute(
            """INSERT INTO settings (config, kept, generation, generation_id, schema, insert_offset, level, boot, open)
               VALUES (:config, :kept, :generation, :generation_id, :schema, :insert_offset, :level, :boot, :open)""",
            vars(self) | {"config": json.dumps(self.config.to_json()), "kept": json.dumps(self.kept.to_json()), "schema": schema},
        )
