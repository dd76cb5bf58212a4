"""The tables of a server, by name, and the data directory that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from tdreplay.api import State
from tdreplay.errors import (
    FailedPreconditionError,
    PermissionDeniedError,
    ReplayError,
    ResourceExhaustedError,
    StorageError,
    TableExistsError,
    TableNotFoundError,
)
from tdreplay.limits import DEFAULT_TABLE
from tdreplay.server_status import Limit
from tdreplay.table_config import TableConfig, TableRequest
from tdreplay.table_description import TableDescription
from tdreplay_server.durability.data_directory import CHECKPOINTS, TABLES, table_directory
from tdreplay_server.durability.journal_state import JournalState
from tdreplay_server.durability.levels import NO_DURABILITY, Durability
from tdreplay_server.durability.shard_mark import NO_SHARD, ShardName, agreed, write_mark
from tdreplay_server.durability.table_directory import read_table
from tdreplay_server.system.descriptors import TABLE_DESCRIPTORS, check_descriptors
from tdreplay_server.system.directory_lock import DirectoryLock
from tdreplay_server.system.disk import check_name, discard, remove_leftovers
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.logs import log
from tdreplay_server.system.private_files import check_directory, check_no_link, make_directories, warn_of_others
from tdreplay_server.tables.busy_names import BusyNames
from tdreplay_server.tables.counts import TableCounts
from tdreplay_server.tables.table import Table
from tdreplay_server.tables.wanted import check_wanted

__all__ = ["DEFAULT_BUFFER_SIZE", "Tables"]

DEFAULT_BUFFER_SIZE = 1_000_000
"""The capacity of the table 'default' where neither the server's settings nor a client names one."""


Result = TypeVar("Result")


class Tables:
    """The tables of one server. Two calls that make or remove a table of the same name go one after the other. No other calls wait for each other.

    If the settings give the table 'default' a capacity, it is there from the start. Else the first insert makes it, or a client that creates it with
    a capacity. Until then reads find it empty.

    Args:
        data_dir: Where the rows lie. The tables that are there are opened. None: in files without names, which end with the tables.
        storing_device: The device of tables whose creator names none.
        default_buffer_size: The capacity of the table 'default', which is made at once, or must have it. None: it is made later.
        max_tables: How many tables there may be.
        durability: What acknowledged rows survive, given a data_dir.
        on_failure: Called when the disk failed.
        wanted: Tables that are there from the start: those that are not are made.
        shard: Which shard the server is to be.

    Attributes:
        shard: Which shard the server is, also where the data directory alone says so.

    Raises:
        OtherSettingsError: a table has other settings than it is wanted with. Nothing in the directory changes.
        FailedPreconditionError: the table 'default' has another capacity, the directory is of another shard, a newer version wrote it, or links are
            in it. Nothing in it changes.
        DirectoryInUseError: another server has the directory.
        CorruptDataError: what is in it is not what was written. Nothing in it changes.
        ResourceExhaustedError: it has more tables than this process may have files open, or its disk has no room for the journals.
    """

    def __init__(
        self,
        data_dir: Path | None,
        storing_device: str,
        default_buffer_size: int | None,
        max_tables: int,
        durability: str = "process",
        on_failure: Callable[[StorageError], object] | None = None,
        wanted: Sequence[TableRequest] = (),
        shard: ShardName = NO_SHARD,
    ) -> None:
        self._storing_device, self._max_tables = storing_device, max_tables
        self._durability, self._on_failure = durability, on_failure
        self._tables: dict[str, Table] = {}
        self._places = 0  # One for each table, those that are being made included.
        self._lock = threading.Lock()
        self._names = BusyNames()
        self._data_dir, self.shard = data_dir, shard
        self._held: DirectoryLock | None = None
        self._unmade = self._stand_in()
        try:
            if data_dir is not None:
                with disk_errors(str(data_dir)):
                    self._open_all(data_dir, default_buffer_size, wanted)
            else:
                log.warning("rows end with this process; name a data_dir to keep them")
            if default_buffer_size is not None:
                self.create(TableRequest.of(default_buffer_size, name=DEFAULT_TABLE))
            for request in wanted:
                self.create(request)
        except BaseException:
            self.close()
            raise

    def _open_all(self, data_dir: Path, default_buffer_size: int | None, wanted: Sequence[TableRequest]) -> None:
        make_directories(data_dir)
        warn_of_others(data_dir)
        self._held = DirectoryLock(data_dir)
        self.shard = agreed(data_dir, self.shard)
        for path in (data_dir / TABLES, data_dir / CHECKPOINTS, *_visible(data_dir / TABLES)):
            check_directory(path)
        for path in _visible(data_dir / CHECKPOINTS):
            check_no_link(path)
        found = {path.name: read_table(path, torn_end=True) for path in _visible(data_dir / TABLES)}  # All of them, before anything is changed.
        _check_default(data_dir, found, default_buffer_size)
        check_wanted(data_dir, {name: state.settings.config for name, state in found.items()}, wanted)
        check_descriptors(sum(map(_descriptors, found.values())), f"{data_dir}, with {len(found)} tables,")
        self._held.sign()
        write_mark(data_dir, self.shard)
        for parent in (data_dir / TABLES, *_visible(data_dir / CHECKPOINTS), data_dir / CHECKPOINTS):
            remove_leftovers(parent)
        for name, state in found.items():
            self._tables[name] = self._made(replace(state.settings.config, name=name))
            how = "table recovered" if state.settings.open else "table opened"
            log.info(how, table=name, rows=state.ring.size, write_count=state.ring.write_count)
        self._places = len(self._tables)

    def _stand_in(self) -> Table:
        """What reads find while there is no table 'default'."""
        checkpoints = None if self._data_dir is None else self._data_dir / CHECKPOINTS / DEFAULT_TABLE
        kept = self._data_dir is not None and torch.device(self._storing_device).type == "cpu"
        return _Unmade(self._storing_device, Durability.parse(self._durability).level if kept else NO_DURABILITY.level, checkpoints)

    def __getitem__(self, name: str) -> Table:
        """The table of that name, to be read. While there is no table 'default', an empty one stands for it.

        Raises:
            TableNotFoundError: there is none.
            InvalidArgumentError: there cannot be one of that name.
        """
        found = self._tables.get(name)
        if found is None and name == DEFAULT_TABLE:
            return self._unmade
        if found is None:
            raise self._missing(name)
        return found

    def write(self, name: str, change: Callable[[Table], Result]) -> Result:
        """Calls `change` with the table of that name, and gives its result. It makes the table 'default' if need be, unless `change` fails.

        Raises:
            TableNotFoundError, InvalidArgumentError: there is no table of that name, or cannot be one.
            ResourceExhaustedError, StorageError: the table 'default' cannot be made.
        """
        found = self._tables.get(name)
        if found is None and name == DEFAULT_TABLE:
            return self._first_written(change)
        return change(self[name])

    def _first_written(self, change: Callable[[Table], Result]) -> Result:
        with self._names.held(DEFAULT_TABLE):
            found = self._tables.get(DEFAULT_TABLE)
            if found is None:
                with self._new(TableConfig(DEFAULT_BUFFER_SIZE, self._storing_device, name=DEFAULT_TABLE)) as made:
                    return change(made)
        return change(found)

    def create(self, request: TableRequest) -> bool:
        """Creates a table, or checks that the one of this name agrees. True where it was created.

        Raises:
            TableExistsError: it is there with other settings; the message says what differs.
            InvalidArgumentError: the storing device is not there, there cannot be a table of this name, or its settings contradict each other.
            ResourceExhaustedError: there are `max_tables` already, or the disk is full, or no descriptors are left for it.
        """
        check_name(request.name, "table")
        with self._names.held(request.name):
            found = self._tables.get(request.name)
            if found is None:
                with self._new(request.config(self._storing_device)):
                    return True
            _check_alike(found, request)
            return False

    def check(self, request: TableRequest) -> bool:
        """Makes sure that a table is there, and agrees. False: none was created.

        Raises:
            PermissionDeniedError: it is not there.
            TableExistsError, InvalidArgumentError: as `create`.
        """
        found = self._tables.get(check_name(request.name, "table"))
        if found is None:
            raise PermissionDeniedError(f"table {request.name!r} is not there, and only an admin may create it")
        _check_alike(found, request)
        return False

    @contextmanager
    def _new(self, config: TableConfig) -> Iterator[Table]:
        """A new table, which others find once the block ends. If the block fails, it is gone again. The caller holds the name."""
        with self._place(config.name):
            table = self._made(config)
            try:
                yield table
            except BaseException:
                self._remove(table)
                raise
            with self._lock:
                self._tables[config.name] = table
        log.info("table created", table=config.name, buffer_size=config.buffer_size, storing_device=config.storing_device)

    @contextmanager
    def _place(self, name: str) -> Iterator[None]:
        """Takes one of the `max_tables` places, unless the block fails."""
        with self._lock:
            if self._places >= self._max_tables:
                raise ResourceExhaustedError(f"table {name!r}: there are {self._max_tables} tables (max_tables) already", limit="max_tables")
            self._places += 1
        try:
            yield
        except BaseException:
            with self._lock:
                self._places -= 1
            raise

    def _made(self, config: TableConfig) -> Table:
        if self._data_dir is None:
            return Table(config)
        check_descriptors(TABLE_DESCRIPTORS, f"table {config.name!r}")
        for path in (self._data_dir / TABLES, table_directory(self._data_dir, config.name), self._data_dir / CHECKPOINTS):
            check_directory(path)
        return Table(
            config,
            directory=table_directory(self._data_dir, config.name),
            durability=self._durability,
            checkpoints=self._data_dir / CHECKPOINTS / config.name,
            on_failure=self._on_failure,
        )

    def drop(self, name: str) -> None:
        """Removes a table and its rows. Its name is free before its files are removed, and others do not wait for that.

        Raises:
            TableNotFoundError, InvalidArgumentError: there is none, or cannot be one.
            FailedPreconditionError, StorageError: its directory cannot be taken away. Nothing changed.
        """
        with self._names.at_work():
            with self._names.held(name):
                found = self._tables.get(name)
                if found is None:
                    raise self._missing(name)
                removed = found.drop()
                with self._lock:
                    del self._tables[name]
                    self._places -= 1
            self._discard(removed)
        log.info("table dropped", table=name)

    def _remove(self, table: Table) -> None:
        self._discard(table.drop())

    def _discard(self, removed: Path | None) -> None:
        """Removes the files of a table. If the server stops meanwhile, its next start does the rest."""
        if removed is not None:
            discard(removed, lambda: self._names.closed)

    def _missing(self, name: str) -> ReplayError:
        """The error that says that there is no table of that name. If there cannot be one, it raises InvalidArgumentError."""
        return TableNotFoundError(f"table {check_name(name, 'table')!r} is not there: 'tdreplay table list' names those that are")

    def names(self) -> list[str]:
        """The tables' names, sorted."""
        with self._lock:
            return sorted(self._tables)

    @property
    def durability(self) -> str:
        """What acknowledged rows of tables in the memory of the machine survive: 'none', 'process', 'interval' or 'power'."""
        return NO_DURABILITY.level if self._data_dir is None else Durability.parse(self._durability).level

    def used(self) -> Limit:
        """How many tables there may be, and how many there are."""
        with self._lock:
            return Limit(name="max_tables", limit=self._max_tables, used=self._places)

    def counts(self) -> dict[str, TableCounts]:
        """What is counted of each table, by name. It waits for no call that works on a table."""
        with self._lock:
            tables = dict(self._tables)
        return {name: tables[name].counts() for name in sorted(tables)}

    def close(self) -> None:
        """Closes every table, and gives the data directory back. Calls that make or remove a table end first."""
        self._names.close()
        with self._lock, ExitStack() as stack:
            if self._held is not None:
                stack.callback(self._held.close)
            for table in self._tables.values():
                stack.callback(table.close)
            self._tables.clear()


class _Unmade(Table):
    """Stands for the table 'default' while that is not there. It is empty, and has the settings of the table that an insert makes."""

    def __init__(self, storing_device: str, durability: str, checkpoints: Path | None) -> None:
        super().__init__(TableConfig(DEFAULT_BUFFER_SIZE, storing_device, name=DEFAULT_TABLE), checkpoints=checkpoints)
        self._promised = durability

    def state(self) -> State:
        """As of an empty table, with what its rows will survive."""
        return replace(super().state(), durability=self._promised)

    def describe(self) -> TableDescription:
        """The same, with all that is known of a table."""
        return replace(super().describe(), durability=self._promised)

    @property
    def durability(self) -> str:
        """What rows will survive."""
        return self._promised


def _check_alike(found: Table, request: TableRequest) -> None:
    found.state()  # Says so where the table is of no use any more.
    if differences := request.differences(found.config):
        raise TableExistsError(f"table {request.name!r} is there with {'; '.join(differences)}: use these settings, another name, or drop the table")


def _visible(directory: Path) -> list[Path]:
    """What lies in a directory. What is not in place yet, or not any more, has a hidden name and is left out."""
    return [path for path in sorted(directory.glob("*")) if not path.name.startswith(".")]


def _check_default(data_dir: Path, found: dict[str, JournalState], buffer_size: int | None) -> None:
    default = found.get(DEFAULT_TABLE)
    if default is not None and buffer_size not in (None, default.ring.buffer_size):
        raise FailedPreconditionError(
            f"{data_dir} holds a table 'default' with buffer_size {default.ring.buffer_size}, not {buffer_size}: "
            f"leave --buffer-size out, or change the table with: tdreplay-server resize {data_dir} --buffer-size {buffer_size}"
        )


def _descriptors(found: JournalState) -> int:
    """How many descriptors an open table takes."""
    schema = found.settings.schema
    return TABLE_DESCRIPTORS + sum(1 for field in (schema.stored_fields if schema else ()) if field.row_bytes)
