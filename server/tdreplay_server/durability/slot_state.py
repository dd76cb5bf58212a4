"""What a table keeps of each slot, and of itself, beside the rows: what its sampler and its rate limiter have to know after a restart.

Where the table has a directory, the arrays are mapped files. What is written into them survives the death of the process at once, without a call. A
loss of power may take what was written since the last `sync`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import CorruptDataError
from tdreplay_server.storage.ring import Ring, slot_ranges
from tdreplay_server.system.disk import check_name, reserve
from tdreplay_server.system.disk_errors import disk_errors
from tdreplay_server.system.private_files import make_directory, open_file

__all__ = ["NOTHING_KEPT", "Kept", "SlotColumn", "SlotState", "StateCopy", "StateValue", "check_dtype", "state_file"]

DTYPES = frozenset(np.dtype(kind).str for kind in (np.float64, np.int64, np.uint64, np.uint32, np.uint8))
VALUES = "values"
"""The name of the file with the values of the table."""


class SlotColumn(NamedTuple):
    """One value for each slot.

    Attributes:
        name: Its name, among those of the table.
        dtype: Its dtype.
    """

    name: str
    dtype: npt.DTypeLike


class StateValue(NamedTuple):
    """One value for the table.

    Attributes:
        name: Its name, among those of the table.
        dtype: Its dtype, of 8 bytes: it is written in one step.
    """

    name: str
    dtype: npt.DTypeLike = np.float64


class Kept(NamedTuple):
    """What is kept of a table. All of it is 0 in a new one."""

    columns: tuple[SlotColumn, ...] = ()
    values: tuple[StateValue, ...] = ()

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Kept:
        """What `to_json` gave.

        Raises:
            KeyError, ValueError: it is something else.
        """
        columns = tuple(SlotColumn(check_name(name, "column"), check_dtype(dtype)) for name, dtype in entries["columns"])
        return cls(columns, tuple(StateValue(str(name), check_dtype(dtype)) for name, dtype in entries["values"]))

    def to_json(self) -> dict[str, Any]:
        """The names and the dtypes."""
        return {what: [(part.name, np.dtype(part.dtype).str) for part in getattr(self, what)] for what in ("columns", "values")}

    def file_sizes(self, buffer_size: int) -> dict[str, int]:
        """The names of the files that hold it -> their sizes, in bytes."""
        sizes = {state_file(name): buffer_size * np.dtype(dtype).itemsize for name, dtype in self.columns}
        return sizes | ({state_file(VALUES): 8 * len(self.values)} if self.values else {})


def check_dtype(name: str) -> str:
    """The name of a dtype that a column or a value may have.

    Raises:
        ValueError: it is none.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} must be one of {sorted(DTYPES)}")
    return name


NOTHING_KEPT = Kept()


class StateCopy(NamedTuple):
    """The state of one moment.

    Attributes:
        columns: name -> the values of the live rows, by ascending id.
        values: name -> the value.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    values: Mapping[str, Any]


def state_file(name: str) -> str:
    """The name of the file with the column `name`, or with the values of the table."""
    return f"state_{name}.memmap"


class SlotState:
    """The state of one generation.

    Attributes:
        columns: name -> the values of all slots: an array of shape [buffer_size], to be written in place.
        values: name -> the value: an array of shape [], to be written in place.
        is_new: Whether all of it is 0, because no row was there yet.

    Args:
        kept: What is kept.
        buffer_size: The number of slots.
        directory: The directory of the rows. None: the arrays end with this object.
        is_new: Whether the files are to be made.

    Raises:
        CorruptDataError: a file is missing, or has another size than was written.
        ResourceExhaustedError, StorageError: the disk is full, or failed.
    """

    def __init__(self, kept: Kept, buffer_size: int, directory: Path | None = None, *, is_new: bool = True) -> None:
        self.is_new = is_new
        self._directory = directory
        self._files: list[Path] = []
        self.columns: Mapping[str, npt.NDArray[Any]] = {name: self._array(name, buffer_size, dtype) for name, dtype in kept.columns}
        words = self._array(VALUES, len(kept.values), np.uint64) if kept.values else np.zeros(0, np.uint64)
        self.values: Mapping[str, npt.NDArray[Any]] = {
            name: words[at : at + 1].view(dtype).reshape(()) for at, (name, dtype) in enumerate(kept.values)
        }

    def _array(self, name: str, count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        if self._directory is None:
            return np.zeros(count, dtype)
        path, size = self._directory / state_file(name), count * np.dtype(dtype).itemsize
        with disk_errors(str(path)):
            if self.is_new:
                make_directory(self._directory)
            mapped = _mapped(path, size, is_new=self.is_new)
        self._files.append(path)
        return mapped.view(dtype)

    def copy(self, ring: Ring) -> StateCopy:
        """A copy of what is known of the live rows of `ring`, and of the table. Nobody may change it meanwhile."""
        ranges = slot_ranges(ring.oldest, ring.size, ring.buffer_size)
        columns = {name: np.concatenate([column[start:stop] for start, stop in ranges]) for name, column in self.columns.items()}
        return StateCopy(columns, {name: value.item() for name, value in self.values.items()})

    def fill(self, copied: StateCopy, ring: Ring) -> None:
        """Takes over a copy, of which the live rows of `ring` are the last ones. What the copy does not have stays 0."""
        slots = np.arange(ring.oldest, ring.write_count) % ring.buffer_size
        for name in self.columns.keys() & copied.columns.keys():
            self.columns[name][slots] = copied.columns[name][len(copied.columns[name]) - ring.size :]
        for name in self.values.keys() & copied.values.keys():
            self.values[name][...] = copied.values[name]

    def sync(self) -> None:
        """Returns when what was written is on the disk.

        Raises:
            StorageError: the disk failed.
        """
        with disk_errors(str(self._directory)):
            for path in self._files:
                file = open_file(path, os.O_RDWR)
                try:
                    os.fdatasync(file)  # It also writes what was changed through the mapping (mmap(2), MAP_SHARED; fsync(2)).
                finally:
                    os.close(file)


def _mapped(path: Path, size: int, *, is_new: bool) -> npt.NDArray[np.uint8]:
    """The bytes of a file, mapped. No descriptor stays open for it: a server may have many tables."""
    try:
        file = open_file(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0))
    except FileNotFoundError:
        raise CorruptDataError(f"{path} is missing") from None
    try:
        if is_new:
            reserve(file, size, path.parent)
        elif os.fstat(file).st_size != size:
            raise CorruptDataError(f"{path} has {os.fstat(file).st_size} bytes, and {size} were written")
        return torch.from_file(f"/proc/self/fd/{file}", shared=True, size=size, dtype=torch.uint8).numpy()
    finally:
        os.close(file)
