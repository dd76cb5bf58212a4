"""Where the rows lie: TorchRL's storages, with contiguous writes, and with gathers straight into memory that the caller gives.

TorchRL writes rows through an index and copies what it samples twice; copying slices and gathering rows of bytes over the same memory is several
times as fast. The other difference is in the files: TorchRL names them after the fields, which here come from the network.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase

from tdreplay.errors import InvalidArgumentError, ReplayError, ResourceExhaustedError, StorageError
from tdreplay.limits import check_whole
from tdreplay.memory import Rows, as_rows, has_rows
from tdreplay.schema import Schema
from tdreplay_server.storage.paging import LARGE_BYTES, FileRows, blocks_read
from tdreplay_server.storage.parallel import in_parts
from tdreplay_server.storage.ring import Ring, Slots
from tdreplay_server.storage.torchrl import LazyMemmapStorage, LazyTensorStorage
from tdreplay_server.system.descriptors import check_descriptors, none_left
from tdreplay_server.system.disk import check_room, discard, reserve
from tdreplay_server.system.disk_errors import NO_MEMORY, NO_SPACE, disk_error
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.private_files import make_directory, open_file

__all__ = ["DeviceRows", "Inserts", "MemmapRows", "RowStorage", "check_device", "column_file", "open_storage"]

Inserts: TypeAlias = "Mapping[str, torch.Tensor | Rows]"
"""Columns that are to be stored: tensors, or what came over the wire as it came. A field without bytes may be missing among the latter."""

FILE_WRITES = 64
"""So many large blocks go to the files once one of them had to read what it overwrote: only a copy into the mapping tells whether it still would."""
AHEAD_BYTES = 16 << 20
"""That are asked for before they are copied."""


class RowStorage(LazyTensorStorage):
    """A TorchRL storage of flat columns: field name (nested keys joined with '.') -> tensor of shape [max_size, *field shape].

    `ring` says which of its slots hold live rows.
    """

    @property
    def ring(self) -> Ring:
        """Which slots hold live rows."""
        return self._ring

    @ring.setter
    def ring(self, ring: Ring) -> None:
        self._ring = ring
        self._len = ring.size

    def allocate(self, schema: Schema) -> None:
        """Makes the columns. To be called once, before the first `set`. The memory, or the space on the disk, is taken at once.

        Raises:
            ResourceExhaustedError: it cannot be had. Nothing of it is left.
            StorageError: the disk failed.
        """
        try:
            check_whole(self.max_size * schema.row_bytes, "their number of bytes", 0)
            self._check_room(self.max_size * schema.row_bytes)
            self._take_columns(schema, self._new_column)
        except (RuntimeError, OSError, MemoryError, ResourceExhaustedError, InvalidArgumentError) as error:
            self.discard()
            raise _refused(error, f"{self.max_size} rows of {schema.row_bytes} bytes, {self.max_size * schema.row_bytes} bytes in all") from error

    def _check_room(self, size: int) -> None:
        """Passes where there may be room for so many bytes; making the columns tells.

        Raises:
            ResourceExhaustedError: there is none.
        """

    def _take_columns(self, schema: Schema, column: Callable[[int, tuple[int, ...], torch.dtype], torch.Tensor]) -> None:
        self._columns = {field.name: column(n, (self.max_size, *field.shape), field.dtype) for n, field in enumerate(schema.fields)}
        self._rows = {name: as_rows(column) for name, column in self._columns.items() if column.device.type == "cpu" and column[:1].nbytes}
        self._targets: Mapping[str, Rows | FileRows] = self._rows  # Where `put` writes.
        self._storage = TensorDict(self._columns, batch_size=[self.max_size], device=self.device)
        self.initialized = True

    def _new_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        raise NotImplementedError

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Copies rows into the slots ``range(cursor.start, cursor.stop)``; anything but such a range goes TorchRL's way."""
        if isinstance(cursor, range) and cursor.step == 1:
            self.put(cursor.start, cursor.stop, dict(data.items()))
        else:
            super().set(cursor, data, set_cursor=set_cursor)

    def put(self, start: int, stop: int, columns: Inserts) -> None:
        """Copies rows into the slots from start to stop: rows of bytes, or tensors of any device and layout, of shape [stop - start, ...]."""
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

    def sync(self) -> None:
        """Returns when all that was written is on the disk, where there is one.

        Raises:
            StorageError: the disk failed.
        """

    def gather(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool = False) -> None:
        """Copies the rows in `slots` (checked by the caller) into `out`: rows of bytes on the CPU, for any of the fields that have bytes.

        `threads`: several may work on it.
        """
        for name, place in out.items():
            if name in self._rows and threads:
                _gather(self._rows[name], slots, place)
            elif name in self._rows:
                self._rows[name].take(slots, out=place, mode="clip")  # Not "raise", which would gather into a copy of `out` first.
            else:
                place[:] = as_rows(self._select_one(name, slots).cpu())

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
        self._columns, self._rows, self._targets = {}, {}, {}
        self._storage = None
        self.initialized = False

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


def _as_tensor(rows: Rows, like: torch.Tensor) -> torch.Tensor:
    """Rows of bytes as a tensor of the dtype and shape of another one."""
    return torch.from_numpy(rows.view(np.uint8)).view(like.dtype).view(like.shape)


def column_file(number: int) -> str:
    """The name of the file with the column of a schema's field of that number."""
    return f"field_{number:03d}.memmap"


class MemmapRows(RowStorage, LazyMemmapStorage):
    """Rows in files, one a field, mapped into memory.

    They may be more than there is memory for: batches of rows that were not in memory lately are asked for before they are copied, and large
    blocks are written to the files, where a copy into the mapping would first read what it overwrites.

    Args:
        buffer_size: how many rows there is room for.
        directory: of the files. None: they have no names, and end with this object, or with its process, however that ends.
    """

    def __init__(self, buffer_size: int, directory: Path | None) -> None:
        self._files: dict[int, int] = {}
        # Not at the exit of the interpreter: then the kernel closes them, and until then the flusher may be at work.
        weakref.finalize(self, _close, self._files).atexit = False
        self._in_files: dict[str, FileRows] = {}
        self._reads_disk, self._file_writes = False, 0
        LazyMemmapStorage.__init__(self, buffer_size, scratch_dir=directory, device="cpu", auto_cleanup=False, compilable=True)
        self.ring = Ring(buffer_size)
        self._directory = directory

    def open_columns(self, schema: Schema) -> None:
        """Maps the files that an earlier storage made for rows of `schema`, which are there. To be called once, in place of `allocate`.

        Raises:
            ResourceExhaustedError: a file does not have its space on the disk, as after a copy, and there is none left.
        """
        self._take_columns(schema, self._old_column)

    def _take_columns(self, schema: Schema, column: Callable[[int, tuple[int, ...], torch.dtype], torch.Tensor]) -> None:
        super()._take_columns(schema, column)
        self._in_files = {f.name: FileRows(self._files[n], self._rows[f.name]) for n, f in enumerate(schema.fields) if f.name in self._rows}
        self._row_bytes = schema.row_bytes

    def allocate(self, schema: Schema) -> None:
        """As `RowStorage.allocate`. The descriptors that the files need must be left as well."""
        files = sum(1 for field in schema.fields if field.row_bytes)
        check_descriptors(files, f"a table of {files} fields")
        super().allocate(schema)

    def _check_room(self, size: int) -> None:
        check_room(size, self._place.parent if self._directory else self._place)

    def _new_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._mapped(number, shape, dtype, os.O_CREAT | os.O_EXCL)

    def _old_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self._mapped(number, shape, dtype, 0)

    def _opened(self, number: int, flags: int) -> int:
        if self._directory is None:
            with tempfile.TemporaryFile() as file:
                return os.dup(file.fileno())
        make_directory(self._directory)
        return open_file(self._directory / column_file(number), os.O_RDWR | flags)

    @property
    def _place(self) -> Path:
        """Where the files lie, for messages, and for what is asked of their disk."""
        return Path(tempfile.gettempdir()) if self._directory is None else self._directory

    def _mapped(self, number: int, shape: tuple[int, ...], dtype: torch.dtype, flags: int) -> torch.Tensor:
        """A column in a file, which stays open: an error that the disk reports is reported to those who have the file open then."""
        if torch.Size(shape).numel() == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")  # An empty file cannot be mapped.
        self._files[number] = file = self._opened(number, flags)
        reserve(file, torch.Size(shape).numel() * dtype.itemsize, self._place)
        mapped = MemoryMappedTensor.from_filename(f"/proc/self/fd/{file}", dtype, torch.Size(shape))
        column: torch.Tensor = mapped.as_subclass(torch.Tensor)  # The subclass would cost 10 us at every access.
        return column

    def put(self, start: int, stop: int, columns: Inserts) -> None:
        """As `RowStorage.put`.

        Raises:
            StorageError: the disk failed.
        """
        if (stop - start) * self._row_bytes < LARGE_BYTES:
            super().put(start, stop, columns)
            return
        before = blocks_read()
        try:
            super().put(start, stop, columns)
        except OSError as error:
            raise self._failed(error) from error
        self._file_writes = FILE_WRITES if blocks_read() != before else max(0, self._file_writes - 1)
        self._targets = self._in_files if self._file_writes else self._rows

    def gather(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool = False) -> None:
        """As `RowStorage.gather`."""
        before = blocks_read()
        if self._reads_disk:
            self._read_ahead(slots, out, threads=threads)
        else:
            super().gather(slots, out, threads=threads)
        self._reads_disk = blocks_read() != before

    def _read_ahead(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool) -> None:
        """Gathers some rows after the others: all that is asked for has to stay in memory until it is copied."""
        step = max(1, AHEAD_BYTES // max(1, sum(place.itemsize for place in out.values())))
        for start in range(0, len(slots), step):
            some = slots[start : start + step]
            for name in out:
                self._in_files[name].ask_for(some)
            super().gather(some, {name: place[start : start + step] for name, place in out.items()}, threads=threads)

    def sync(self) -> None:
        """Returns when all that was written is on the disk.

        Raises:
            StorageError: the disk failed.
        """
        try:
            for file in self._files.values():
                os.fdatasync(file)  # It also writes what was changed through the mapping (mmap(2), MAP_SHARED; fsync(2)).
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StorageError:
        """Whatever the error is, a lack of space too: the space was reserved, and the kernel may not keep what it could not write."""
        return StorageError(f"rows cannot be written to {self._place}: {error}")

    def release(self) -> None:
        """Unmaps the files. Those that have names stay."""
        super().release()
        self._in_files = {}
        _close(self._files)

    def discard(self) -> None:
        """Unmaps the files and removes them."""
        self.release()
        if self._directory is not None:
            discard(self._directory)


def _close(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])


class DeviceRows(RowStorage):
    """Rows in the memory of a device."""

    def __init__(self, buffer_size: int, device: torch.device) -> None:
        super().__init__(buffer_size, device=device, compilable=True)
        self.ring = Ring(buffer_size)

    def _new_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def open_storage(device: torch.device, buffer_size: int, directory: Path | None) -> RowStorage:
    """A storage of `buffer_size` rows: files in `directory` for the CPU (None: files without names), device memory for CUDA.

    Raises:
        InvalidArgumentError: the device is neither, or it is not there.
    """
    check_device(device)
    return MemmapRows(buffer_size, directory) if device.type == "cpu" else DeviceRows(buffer_size, device)


def check_device(device: torch.device) -> None:
    """Passes where rows can lie on the device.

    Raises:
        InvalidArgumentError: they cannot.
    """
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        return
    raise InvalidArgumentError(f"storing_device ({device}) must be cpu, or a CUDA device of this machine, which has {torch.cuda.device_count()}")
