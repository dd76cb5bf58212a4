"""The tables of a server, by name, and the directory that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from tdreplay.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    StorageError,
    TableExistsError,
    TableNotFoundError,
)
from tdreplay.limits import DEFAULT_TABLE
from tdreplay_server.disk import DirectoryLock, check_name, remove_leftovers
from tdreplay_server.logs import log
from tdreplay_server.table import Table
from tdreplay_server.table_directory import CHECKPOINTS, read_table

__all__ = ["DEFAULT_BUFFER_SIZE", "TABLES", "Tables", "table_directory"]

DEFAULT_BUFFER_SIZE = 1_000_000
"""The capacity of the table 'default' where neither the server's settings nor a client names one."""


TABLES = "tables"
"""The directory of all tables, in a data directory."""


def table_directory(data_dir: Path, name: str) -> Path:
    """Where a table lies in a data directory."""
    return data_dir / TABLES / name


class Tables:
    """The tables of one server.

    The table 'default' is there at the start where the settings give it a capacity; else it is created by the first client that uses it.

    Args:
        data_dir: where the rows lie: the tables that are there are opened. None: in files without names, which end with the tables.
        storing_device: of tables whose creator names none.
        default_buffer_size: creates the table 'default' at once, or checks that it has this capacity.
        max_tables: how many there may be.
        durability: what acknowledged rows survive, given a data_dir.
        on_failure: called when the disk failed.

    Raises:
        FailedPreconditionError: the table 'default' has another capacity, or a newer version wrote the directory. Nothing in it changes.
        DirectoryInUseError: another server has the directory.
        CorruptDataError: what is in it is not what was written. Nothing in it changes.
    """

    def __init__(
        self,
        data_dir: Path | None,
        storing_device: str,
        default_buffer_size: int | None,
        max_tables: int,
        durability: str = "process",
        on_failure: Callable[[StorageError], object] | None = None,
    ) -> None:
        self._storing_device, self._max_tables = storing_device, max_tables
        self._durability, self._on_failure = durability, on_failure
        self._tables: dict[str, Table] = {}
        self._lock = threading.Lock()
        self._data_dir = data_dir
        self._held: DirectoryLock | None = None
        try:
            if data_dir is not None:
                self._open_all(data_dir, default_buffer_size)
            else:
                log.warning("rows end with this process; name a data_dir to keep them")
            if default_buffer_size is not None:
                self.create(DEFAULT_TABLE, default_buffer_size)
        except BaseException:
            self.close()
            raise

    def _open_all(self, data_dir: Path, default_buffer_size: int | None) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._held = DirectoryLock(data_dir)
        paths = [path for path in sorted((data_dir / TABLES).glob("*")) if not path.name.startswith(".")]
        found = {path.name: read_table(path, torn_end=True) for path in paths}  # All of them, before anything is changed.
        default = found.get(DEFAULT_TABLE)
        if default is not None and default_buffer_size not in (None, default.ring.buffer_size):
            raise FailedPreconditionError(
                f"{data_dir} holds a table 'default' with buffer_size {default.ring.buffer_size}, not {default_buffer_size}: "
                f"leave --buffer-size out, or change the table with: tdreplay-server resize {data_dir} --buffer-size {default_buffer_size}"
            )
        self._held.sign()
        for parent in (data_dir / TABLES, *(data_dir / CHECKPOINTS).glob("*"), data_dir / CHECKPOINTS):
            remove_leftovers(parent)
        for name, state in found.items():
            self._tables[name] = self._made(name, state.ring.buffer_size, "cpu")
            log.info("table recovered" if state.was_open else "table opened", table=name, rows=state.ring.size, write_count=state.ring.write_count)

    def __getitem__(self, name: str) -> Table:
        """The table of that name.

        Raises:
            TableNotFoundError: there is none.
        """
        found = self._tables.get(name)
        if found is None and name == DEFAULT_TABLE:
            with self._lock:
                found = self._tables.get(name) or self._open(name, DEFAULT_BUFFER_SIZE, self._storing_device)
        if found is None:
            raise TableNotFoundError(f"table {name[:80]!r} is not there; this server has {self.names()}")
        return found

    def create(self, name: str, buffer_size: int, storing_device: str = "") -> bool:
        """Creates a table, or checks that the one that is there agrees. True where it was created.

        Raises:
            TableExistsError: it is there with another capacity or storing device; the message says what differs.
            InvalidArgumentError: a setting breaks its rule.
            ResourceExhaustedError: there are `max_tables` already.
        """
        device = str(_device(storing_device)) if storing_device else ""
        with self._lock:
            found = self._tables.get(name)
            if found is None:
                self._open(name, buffer_size, device or self._storing_device)
                return True
        state = found.state()
        differing = [
            ("buffer_size", state.buffer_size, buffer_size),
            ("storing_device", str(state.storing_device), device or str(state.storing_device)),
        ]
        for setting, is_, asked in differing:
            if is_ != asked:
                raise TableExistsError(f"table {name!r} is there with {setting} {is_}, not {asked}; use that, another name, or reset(buffer_size)")
        return False

    def _open(self, name: str, buffer_size: int, storing_device: str) -> Table:
        check_name(name, "table")
        if len(self._tables) >= self._max_tables:
            raise ResourceExhaustedError(f"table {name!r}: there are {self._max_tables} tables (max_tables) already")
        self._tables[name] = self._made(name, buffer_size, storing_device)
        log.info("table created", table=name, buffer_size=buffer_size, storing_device=storing_device)
        return self._tables[name]

    def _made(self, name: str, buffer_size: int, storing_device: str) -> Table:
        if self._data_dir is None:
            return Table(storing_device, buffer_size)
        return Table(
            storing_device,
            buffer_size,
            directory=table_directory(self._data_dir, name),
            durability=self._durability,
            checkpoints=self._data_dir / CHECKPOINTS / name,
            on_failure=self._on_failure,
        )

    def drop(self, name: str) -> None:
        """Removes a table and its rows.

        Raises:
            TableNotFoundError: there is none.
        """
        with self._lock:
            found = self._tables.pop(name, None)
        if found is None:
            raise TableNotFoundError(f"table {name[:80]!r} is not there; this server has {self.names()}")
        found.delete()
        log.info("table dropped", table=name)

    def names(self) -> list[str]:
        """The tables' names, sorted."""
        return sorted(self._tables)

    def close(self) -> None:
        """Closes every table, and gives the data directory back."""
        with self._lock, ExitStack() as stack:
            if self._held is not None:
                stack.callback(self._held.close)
            for table in self._tables.values():
                stack.callback(table.close)
            self._tables.clear()


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise InvalidArgumentError(f"storing_device ({name[:80]!r}) must be cpu or cuda:N") from None
