"""Rows as columns, one a field: copied to the slots of their ids, and gathered from slots into memory that the caller gives.

Where the columns lie is for `memmap` and `device` to say.
"""

from __future__ import annotations

import errno
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import torch

from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError, ResourceExhaustedError
from tdreplay.limits import check_whole
from tdreplay.memory import Rows, as_rows, has_rows
from tdreplay.schema import Schema
from tdreplay_server.storage.paging import FileRows
from tdreplay_server.storage.parallel import in_parts
from tdreplay_server.storage.ring import Ring, Slots, slot_ranges
from tdreplay_server.system.descriptors import none_left
from tdreplay_server.system.disk_errors import NO_MEMORY, NO_SPACE, disk_error
from tdreplay_server.system.failpoints import failpoint

__all__ = ["Inserts", "RowStorage"]

LARGE_ROW = 4096
"""Bytes from which on a row is copied once, with a call for each run of rows, rather than twice with two calls for all."""
Inserts: TypeAlias = "Mapping[str, torch.Tensor | Rows]"
"""Columns that are to be stored: tensors, or rows of bytes as they came over the wire. A field without bytes may be missing among the latter."""


class RowStorage(ABC):
    """Room for `buffer_size` rows of one schema, in flat columns: field name (nested keys joined with '.') -> shape [buffer_size, *field shape].

    It has no lock. The caller sees to it that nobody reads slots while they are written, and that nobody reads slots that hold no row.

    Attributes:
        buffer_size: the number of slots.
        device: where the columns lie.
        ring: which slots hold live rows. The caller moves it.
    """

    def __init__(self, buffer_size: int, device: torch.device) -> None:
        self.buffer_size, self.device = buffer_size, device
        self.ring = Ring(buffer_size)
        self._forget_columns()

    def _forget_columns(self) -> None:
        self._columns: dict[str, torch.Tensor] = {}
        self._rows: dict[str, Rows] = {}  # The columns that lie in this process's memory.
        self._targets: Mapping[str, Rows | FileRows] = self._rows  # Where `put` writes.

    def allocate(self, schema: Schema) -> None:
        """Makes the columns. To be called once, before the first row is written. The memory, or the space on the disk, is taken at once.

        Raises:
            ResourceExhaustedError: it cannot be had. Nothing of it is left.
            StorageError: the disk failed.
        """
        try:
            check_whole(self.buffer_size * schema.row_bytes, "their number of bytes", 0)
            self._check_room(self.buffer_size * schema.row_bytes)
            self._take_columns(schema, self._new_column)
        except (RuntimeError, OSError, MemoryError, ResourceExhaustedError, InvalidArgumentError) as error:
            self.discard()
            size = self.buffer_size * schema.row_bytes
            raise _refused(error, f"{self.buffer_size} rows of {schema.row_bytes} bytes, {size} bytes in all") from error

    def open_columns(self, schema: Schema) -> None:
        """Takes up the columns that an earlier storage made for rows of `schema`. To be called once, in place of `allocate`.

        Raises:
            FailedPreconditionError: there are none, because they ended with the earlier storage.
            ResourceExhaustedError: a file does not have its space on the disk, as after a copy, and there is none left.
        """
        raise FailedPreconditionError(f"rows in the memory of {self.device} end with the process that stored them")

    @abstractmethod
    def _check_room(self, size: int) -> None:
        """Passes where there may be room for so many bytes. Whether there is, making the columns tells.

        Raises:
            ResourceExhaustedError: there is none.
        """

    def _take_columns(self, schema: Schema, column: Callable[[int, tuple[int, ...], torch.dtype], torch.Tensor]) -> None:
        self._columns = {field.name: column(n, (self.buffer_size, *field.shape), field.dtype) for n, field in enumerate(schema.stored_fields)}
        self._rows = {name: as_rows(column) for name, column in self._columns.items() if column.device.type == "cpu" and column[:1].nbytes}
        self._targets = self._rows

    @abstractmethod
    def _new_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Room for the values of the field of that number, in all slots."""

    def write(self, row_id: int, rows: int, columns: Inserts) -> None:
        """Copies `rows` rows to their slots; the first one's id is `row_id`. Of more rows than there are slots it copies the last ones.

        The ring does not move.

        Args:
            row_id: The id of the first row.
            rows: how many there are.
            columns: rows of bytes, or tensors of any device and layout, of shape [rows, ...].

        Raises:
            StorageError: the disk failed.
        """
        start = rows - min(rows, self.buffer_size)
        for slot, stop in slot_ranges(row_id + start, rows - start, self.buffer_size):
            count = stop - slot
            self._put(slot, stop, columns if count == rows else {name: column[start : start + count] for name, column in columns.items()})
            start += count

    def _put(self, start: int, stop: int, columns: Inserts) -> None:
        """Copies rows into the slots from start to stop."""
        for name, column in columns.items():
            if name not in self._rows:
                place = self._columns[name][start:stop]
                place.copy_(column if isinstance(column, torch.Tensor) else _as_tensor(column, place))
            elif not isinstance(column, torch.Tensor):
                self._targets[name][start:stop] = column
            elif has_rows(column):
                self._targets[name][start:stop] = as_rows(column)
            else:
                self._columns[name][start:stop].copy_(column)
            failpoint("insert-half-written")

    def rows(self, start: int, stop: int, name: str) -> Rows:
        """The bytes of a field in the slots from start to stop: a view, or a copy where the rows lie on a device."""
        return self._rows[name][start:stop] if name in self._rows else as_rows(self._columns[name][start:stop].cpu())

    def scatter(self, name: str, slots: Slots, rows: Rows) -> None:
        """Copies a field's values into some slots: rows of bytes, on the CPU."""
        if name in self._rows:
            self._rows[name][slots] = rows

    @abstractmethod
    def sync(self) -> None:
        """Returns when all that was written is on the disk, where there is one.

        Raises:
            StorageError: the disk failed.
        """

    def gather(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool = False, places: Slots | None = None) -> None:
        """Copies the rows in `slots` (checked by the caller) into `out`: rows of bytes on the CPU, for any of the fields that have bytes.

        `threads`: several may work on it. `places`: where each row goes in `out`, ascending; None: one after the other.
        """
        for name, place in out.items():
            if places is not None:
                self._scatter(name, slots, place, places)
            elif name in self._rows and threads:
                _gather(self._rows[name], slots, place)
            elif name in self._rows:
                self._rows[name].take(slots, out=place, mode="clip")  # Not "raise", which would gather into a copy of `out` first.
            else:
                place[:] = as_rows(self._select_one(name, slots).cpu())

    def _scatter(self, name: str, slots: Slots, out: Rows, places: Slots) -> None:
        if name not in self._rows:
            out[places] = as_rows(self._select_one(name, slots).cpu())
        elif out.itemsize < LARGE_ROW:
            out[places] = self._rows[name].take(slots)
        else:
            _gather_runs(self._rows[name], slots, out, places)

    def select(self, slots: Slots, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Copies of the rows in `slots` (checked by the caller), on the storage's device: name -> tensor of shape [n, ...]."""
        wanted = {name: self._columns[name] for name in names}
        mapped = {
            name: torch.empty((len(slots), *wanted[name].shape[1:]), dtype=wanted[name].dtype, device="cpu") for name in wanted if name in self._rows
        }
        if len(slots):
            self.gather(slots, {name: as_rows(column) for name, column in mapped.items()}, threads=True)
        return {name: mapped[name] if name in mapped else self._select_one(name, slots) for name in wanted}

    def _select_one(self, name: str, slots: Slots) -> torch.Tensor:
        column = self._columns[name]
        if not column[:1].nbytes:
            return column.new_empty((len(slots), *column.shape[1:]))
        # As bytes, because torch gathers no scalars of some dtypes.
        rows = column.view(len(column), -1).view(torch.uint8)
        chosen = torch.index_select(rows, 0, torch.from_numpy(slots).to(column.device))
        return chosen.view(column.dtype).view(len(slots), *column.shape[1:])

    def release(self) -> None:
        """Gives the memory back. Files stay."""
        self._forget_columns()

    def discard(self) -> None:
        """Gives the memory back, and removes the files where there are any."""
        self.release()


def _refused(error: Exception, what: str) -> ReplayError:
    """Why columns cannot be made. PyTorch has a RuntimeError for whatever it cannot have: memory, or a descriptor for a file that it maps."""
    missing = not isinstance(error, OSError) or error.errno in NO_SPACE | NO_MEMORY
    if missing and not none_left():
        return ResourceExhaustedError(f"{what}, cannot be had: {error}; a smaller buffer_size needs less")
    return disk_error(error if isinstance(error, OSError) else OSError(errno.EMFILE, str(error)), what)


def _gather(rows: Rows, slots: Slots, out: Rows) -> None:
    in_parts(len(slots), rows.itemsize, lambda start, stop: rows.take(slots[start:stop], out=out[start:stop], mode="clip"))


def _gather_runs(rows: Rows, slots: Slots, out: Rows, places: Slots) -> None:
    """Copies rows to places that are not one after the other: those that are, at once. NumPy would copy all rows twice."""
    ends = [*(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    if len(ends) == 1:
        _gather(rows, slots, out[places[0] : places[0] + len(places)])
        return
    firsts = places.tolist()
    for start, stop in itertools.pairwise([0, *ends]):
        rows.take(slots[start:stop], out=out[firsts[start] : firsts[start] + stop - start], mode="clip")


def _as_tensor(rows: Rows, like: torch.Tensor) -> torch.Tensor:
    """Rows of bytes as a tensor of the dtype and shape of another one."""
    return torch.from_numpy(rows.view(np.uint8)).view(like.dtype).view(like.shape)
