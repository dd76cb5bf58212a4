"""Rows in files, one a field, that are mapped into memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tensordict import MemoryMappedTensor

from tdreplay.memory import Rows
from tdreplay.schema import Schema
from tdreplay_server.storage.paging import LARGE_BYTES, FileRows, blocks_read
from tdreplay_server.storage.ring import Slots
from tdreplay_server.storage.rows import Inserts, RowStorage
from tdreplay_server.system.descriptors import check_descriptors
from tdreplay_server.system.disk import check_room, discard, reserve
from tdreplay_server.system.disk_errors import unwritten
from tdreplay_server.system.private_files import make_directory, open_file

__all__ = ["MemmapRows", "column_file"]

FILE_WRITES = 64
"""How many large blocks go to the files after one had to read what it overwrote. Then a copy into the mapping tells whether it still would."""
AHEAD_BYTES = 16 << 20
"""How much is asked for before it is copied."""


def column_file(number: int) -> str:
    """The name of the file with the column of a schema's field of that number: fields come from the network, and name no files."""
    return f"field_{number:03d}.memmap"


class MemmapRows(RowStorage):
    """Rows in files, one a field, mapped into memory.

    They may be more than there is memory for: batches of rows that were not in memory lately are asked for before they are copied, and large
    blocks are written to the files, where a copy into the mapping would first read what it overwrites.

    Args:
        buffer_size: how many rows there is room for.
        directory: The directory of the files. None: they have no names, and end with this object or its process, however that ends.
    """

    def __init__(self, buffer_size: int, directory: Path | None) -> None:
        self._files: dict[int, int] = {}
        # Not at the exit of the interpreter: then the kernel closes them, and until then the flusher may be at work.
        weakref.finalize(self, _close, self._files).atexit = False
        self._in_files: dict[str, FileRows] = {}
        self._reads_disk, self._file_writes = False, 0
        self._directory = directory
        super().__init__(buffer_size, torch.device("cpu"))

    def open_columns(self, schema: Schema) -> None:
        """As `RowStorage.open_columns`. It maps the files in the directory, which must be there."""
        self._take_columns(schema, self._old_column)

    def _take_columns(self, schema: Schema, column: Callable[[int, tuple[int, ...], torch.dtype], torch.Tensor]) -> None:
        super()._take_columns(schema, column)
        self._in_files = {f.name: FileRows(self._files[n], self._rows[f.name]) for n, f in enumerate(schema.stored_fields) if f.name in self._rows}
        self._row_bytes = schema.row_bytes

    def allocate(self, schema: Schema) -> None:
        """As `RowStorage.allocate`. The descriptors that the files need must be left as well."""
        files = sum(1 for field in schema.stored_fields if field.row_bytes)
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

    def _put(self, start: int, stop: int, columns: Inserts) -> None:
        if (stop - start) * self._row_bytes < LARGE_BYTES:
            super()._put(start, stop, columns)
            return
        before = blocks_read()
        try:
            super()._put(start, stop, columns)
        except OSError as error:
            raise unwritten(error, self._place) from error
        self._file_writes = FILE_WRITES if blocks_read() != before else max(0, self._file_writes - 1)
        self._targets = self._in_files if self._file_writes else self._rows

    def gather(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool = False, places: Slots | None = None) -> None:
        """As `RowStorage.gather`."""
        before = blocks_read()
        if self._reads_disk:
            self._read_ahead(slots, out, threads=threads, places=places)
        else:
            super().gather(slots, out, threads=threads, places=places)
        self._reads_disk = blocks_read() != before

    def _read_ahead(self, slots: Slots, out: Mapping[str, Rows], *, threads: bool, places: Slots | None) -> None:
        """Gathers some rows after the others: all that is asked for has to stay in memory until it is copied."""
        step = max(1, AHEAD_BYTES // max(1, sum(place.itemsize for place in out.values())))
        for start in range(0, len(slots), step):
            some = slots[start : start + step]
            for name in out:
                self._in_files[name].ask_for(some)
            if places is None:
                super().gather(some, {name: place[start : start + step] for name, place in out.items()}, threads=threads)
            else:
                super().gather(some, out, threads=threads, places=places[start : start + step])

    def sync(self) -> None:
        """Returns when all that was written is on the disk.

        Raises:
            StorageError: the disk failed.
        """
        try:
            for file in self._files.values():
                os.fdatasync(file)  # It also writes what was changed through the mapping (mmap(2), MAP_SHARED; fsync(2)).
        except OSError as error:
            raise unwritten(error, self._place) from error

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
