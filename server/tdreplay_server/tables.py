"""The tables of a server, by name, and the directory that they share."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path

import torch

from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError, TableExistsError, TableNotFoundError
from tdreplay_server.buffer import ReplayBuffer
from tdreplay_server.logs import log

__all__ = ["DEFAULT_BUFFER_SIZE", "DEFAULT_TABLE", "Tables"]

DEFAULT_TABLE = "default"
DEFAULT_BUFFER_SIZE = 1_000_000
"""The capacity of the table 'default' where neither the server's settings nor a client names one."""


class Tables:
    """The tables of one server.

    The table 'default' is there at the start where the settings give it a capacity; else it is created by the first client that uses it.

    Args:
        data_dir: where the rows lie; it must not hold tables of an earlier run. None: a temporary directory, removed by `close`.
        storing_device: of tables whose creator names none.
        default_buffer_size: creates the table 'default' at once.
        max_tables: how many there may be.

    Raises:
        FailedPreconditionError: data_dir holds tables already. Nothing in it changes.
    """

    def __init__(self, data_dir: Path | None, storing_device: str, default_buffer_size: int | None, max_tables: int) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="tdreplay-server-") if data_dir is None else None
        self._directory = (Path(self._temporary.name) if self._temporary else Path(str(data_dir))) / "tables"
        if self._temporary:
            log.warning(
                "rows lie in a temporary directory, which is removed at the end; name a data_dir to keep them", directory=self._temporary.name
            )
        elif self._directory.exists() and any(self._directory.iterdir()):
            raise FailedPreconditionError(
                f"data_dir ({data_dir}) holds tables of an earlier run. Name another directory, or remove {self._directory}"
            )
        self._storing_device, self._max_tables = storing_device, max_tables
        self._buffers: dict[str, ReplayBuffer] = {}
        self._lock = threading.Lock()
        if default_buffer_size is not None:
            self.create(DEFAULT_TABLE, default_buffer_size)

    def __getitem__(self, name: str) -> ReplayBuffer:
        """The table of that name.

        Raises:
            TableNotFoundError: there is none.
        """
        found = self._buffers.get(name)
        if found is None and name == DEFAULT_TABLE:
            with self._lock:
                found = self._buffers.get(name) or self._open(name, DEFAULT_BUFFER_SIZE, self._storing_device)
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
            found = self._buffers.get(name)
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

    def _open(self, name: str, buffer_size: int, storing_device: str) -> ReplayBuffer:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise InvalidArgumentError(f"table {name[:80]!r}: a name must be 1 to 64 letters, digits, '_' or '-'")
        if len(self._buffers) >= self._max_tables:
            raise ResourceExhaustedError(f"table {name!r}: there are {self._max_tables} tables (max_tables) already")
        self._buffers[name] = ReplayBuffer("cpu", storing_device, buffer_size, directory=self._directory / name)
        log.info("table created", table=name, buffer_size=buffer_size, storing_device=storing_device)
        return self._buffers[name]

    def drop(self, name: str) -> None:
        """Removes a table and its rows.

        Raises:
            TableNotFoundError: there is none.
        """
        with self._lock:
            found = self._buffers.pop(name, None)
        if found is None:
            raise TableNotFoundError(f"table {name[:80]!r} is not there; this server has {self.names()}")
        found.delete()
        log.info("table dropped", table=name)

    def names(self) -> list[str]:
        """The tables' names, sorted."""
        return sorted(self._buffers)

    def close(self) -> None:
        """Closes every table, and removes a temporary directory."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.close()
            self._buffers.clear()
        if self._temporary:
            self._temporary.cleanup()


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise InvalidArgumentError(f"storing_device ({name[:80]!r}) must be cpu or cuda:N") from None
