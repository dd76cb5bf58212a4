"""The directory of a table whose rows outlive their process: its lock, its journal, and its rows.

``LOCK`` says whose it is, ``journal.sqlite`` what its rows mean, and ``rows-N`` holds them, where N counts the table's resets.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tdreplay.errors import CorruptDataError, FailedPreconditionError
from tdreplay.table_config import TableConfig, TableRequest
from tdreplay_server.durability.data_directory import CHECKPOINTS
from tdreplay_server.durability.journal import Journal, create_journal
from tdreplay_server.durability.journal_format import Settings
from tdreplay_server.durability.journal_state import JournalState, read_journal
from tdreplay_server.durability.levels import Durability
from tdreplay_server.durability.slot_state import Kept
from tdreplay_server.storage.memmap import column_file
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.directory_lock import LOCK, DirectoryLock
from tdreplay_server.system.disk import discard, new_directory, put_new, remove_leftovers, sync_tree, take_away
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import check_tree, close_to_others, sync, write_file

__all__ = ["TableDirectory", "read_table", "rows_directory"]


def rows_directory(table: Path, generation: int) -> Path:
    """Where the rows of a table's generation lie."""
    return table / f"rows-{generation:06d}"


def read_table(path: Path, *, torn_end: bool = False) -> JournalState:
    """What the directory of a table holds, which must not be open. Nothing in it changes. `torn_end`: as in `read_journal`.

    Raises:
        FailedPreconditionError: a newer version wrote it, or it has links.
        CorruptDataError: it is not what was written, as far as can be told without reading the rows.
    """
    check_tree(path)
    found = read_journal(path, torn_end=torn_end)
    schema, rows, slots = found.settings.schema, rows_directory(path, found.settings.generation), found.ring.buffer_size
    for number, field in enumerate(schema.stored_fields if schema else ()):
        _check_size(rows / column_file(number), slots * field.row_bytes, f", of field {field.name!r}")
    for name, size in found.settings.kept.file_sizes(slots).items() if schema else ():
        _check_size(rows / name, size)
    return found


def _check_size(file: Path, size: int, what: str = "") -> None:
    there = file.stat().st_size if file.is_file() else 0
    if there != size:
        raise CorruptDataError(f"{file} has {there} bytes, and {size} were written{what}")


class TableDirectory:
    """The directory of a table, for this process alone.

    Attributes:
        path: Where the directory is.
        journal: The journal of the table.

    Args:
        path: Where it is, or is to be.
        config: What the table is fixed by. One that is there must agree.
        durability: What acknowledged rows are to survive.
        kept: What is kept beside the rows; nothing: what one that is there keeps.

    Raises:
        FailedPreconditionError: it is there with other settings, a newer version wrote it, or it has links. Nothing in it changed.
        DirectoryInUseError: another process has it.
        CorruptDataError: it is not what was written.
        ResourceExhaustedError, StorageError: the disk is full, or failed. A directory that was not there is not there then.
    """

    def __init__(self, path: Path, config: TableConfig, durability: Durability, kept: Kept) -> None:
        self.path = path
        with disk_errors(f"the table in {path}"):
            made = not path.exists() and _create(path, Settings(config, kept))
            self._lock = DirectoryLock(path)
            try:
                self.journal = self._opened(read_table(path, torn_end=True), config, durability, kept)
            except BaseException:
                if made:
                    discard(take_away(path))
                self._lock.close()
                raise

    def _opened(self, found: JournalState, config: TableConfig, durability: Durability, kept: Kept) -> Journal:
        self._check_agrees(found.settings.config, config)
        self._lock.sign()
        close_to_others(self.path)
        if found.rebooted and found.settings.level == "process":
            log.warning(
                "the machine went down while a server used this table, and its durability was 'process': "
                "rows may be lost or broken; with --durability power they would not be",
                table=self.path.name,
            )
        journal = Journal(self.path, durability, kept)
        self._remove_old_rows(rows_directory(self.path, found.settings.generation) if found.settings.schema else None)
        return journal

    def _check_agrees(self, found: TableConfig, asked: TableConfig) -> None:
        size = asked.buffer_size
        if found.buffer_size != size:
            raise FailedPreconditionError(
                f"{self.path} holds a table with buffer_size {found.buffer_size}, not {size}: use that, "
                f"or change it with: tdreplay-server resize DATA_DIR --table {self.path.name} --buffer-size {size}"
            )
        if differences := TableRequest.of_config(replace(asked, storing_device=found.storing_device)).differences(found):
            raise FailedPreconditionError(f"{self.path} holds a table with {'; '.join(differences)}")

    def _remove_old_rows(self, current: Path | None) -> None:
        for parent in (self.path, self.path / CHECKPOINTS):
            remove_leftovers(parent)
        for rows in self.path.glob("rows-*"):
            if rows != current:
                discard(rows)

    def settle(self, generation: int) -> None:
        """Returns when the new files of a generation are on the disk. The journal may only speak of files that no loss of power takes away.

        Raises:
            ResourceExhaustedError, StorageError: there are no descriptors left for it, or the disk failed.
        """
        rows = rows_directory(self.path, generation)
        if not rows.exists():  # Fields without bytes have no files.
            return
        with disk_errors(str(rows)):
            sync_tree(rows)
            sync(self.path)

    def take_away(self) -> Path:
        """Gives the directory a name that no table has, and returns that. If it raises, nothing changed.

        Raises:
            FailedPreconditionError, StorageError: it cannot be renamed.
        """
        with disk_errors(str(self.path)):
            return take_away(self.path)

    def close(self) -> None:
        """Gives the directory back. The journal is closed by itself."""
        self._lock.close()


def _create(path: Path, settings: Settings) -> bool:
    """Makes the directory of a table. False where somebody else did it meanwhile."""
    with new_directory(path) as scratch:
        write_file(scratch / LOCK, b"")
        create_journal(scratch, settings, Ring(settings.config.buffer_size))
        failpoint("create-before-rename")
        with suppress(FileExistsError):
            put_new(scratch, path)
            return True
    return False
