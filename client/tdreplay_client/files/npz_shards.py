"""Shards of NumPy's npz: a zip file with one array a field. Arrays of objects, which would be pickles, are refused.

bfloat16 and float8, which NumPy does not have, are stored as unsigned integers of the same size and bits. The manifest has their dtypes.
"""

from __future__ import annotations

import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, BinaryIO

import numpy as np
import torch

from tdreplay.errors import CodecError
from tdreplay.fields import DTYPES, Field
from tdreplay.limits import MAX_RANK
from tdreplay.memory import RAW, rows_of
from tdreplay.schema import Columns, Schema
from tdreplay_client.files.shards import MAX_FIELDS, FileFormat, ShardLayout, ShardReader, check_bools

__all__ = ["NPZ", "OF_NUMPY"]

MAX_CONTENTS = 1 << 20
"""The most bytes of the list of arrays in a file. zipfile reads it as a whole."""

MAX_HEAD = 10_000
"""The most bytes of an array's head, as NumPy has it."""

OF_NUMPY: dict[Any, torch.dtype] = {torch.empty(0, dtype=dtype, device="cpu").numpy().dtype: dtype for dtype in DTYPES.values() if dtype not in RAW}
"""NumPy's dtypes -> those of fields."""

_SAME_BITS: dict[torch.dtype, Any] = {
    torch.bfloat16: np.dtype(np.uint16),
    torch.float8_e4m3fn: np.dtype(np.uint8),
    torch.float8_e5m2: np.dtype(np.uint8),
}
_NUMPY = {dtype: of_numpy for of_numpy, dtype in OF_NUMPY.items()} | _SAME_BITS
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
"""What zipfile raises where a file is not what it should be."""


def _write(file: BinaryIO, shard: ShardLayout, parts: Sequence[Columns]) -> None:
    rows = sum(len(part[shard.fields[0].name]) for part in parts)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as made:
        for field in shard.fields:
            with made.open(zipfile.ZipInfo(f"{field.name}.npy"), "w", force_zip64=True) as member:
                head = {"descr": _NUMPY[field.dtype].str, "fortran_order": False, "shape": (rows, *field.shape)}
                np.lib.format.write_array_header_1_0(member, head)
                for part in parts if field.row_bytes else ():
                    member.write(rows_of(part[field.name]).tobytes())


class _Npz(ShardReader):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, name)
        self._check_contents(os.fstat(file.fileno()).st_size)
        try:
            self._zip = zipfile.ZipFile(file)
        except _BROKEN as error:
            raise self.broken(f"it is no npz file: {error}") from None
        members = self._zip.infolist()
        if not 0 < len(members) <= MAX_FIELDS or len({member.filename for member in members}) < len(members):
            raise self.broken(f"it must have 1 to {MAX_FIELDS} arrays, each once, and it has {len(members)}")
        self._arrays = [_Array(self, member) for member in members]
        self.rows = self._arrays[0].shape[0]
        for array in self._arrays:
            if array.shape[0] != self.rows:
                raise self.broken(f"array {array.name!r} has {array.shape[0]} rows, and {self._arrays[0].name!r} has {self.rows}")
        self.fields = tuple(array.field for array in self._arrays)

    def see_as(self, schema: Schema) -> None:
        for array in self._arrays:
            array.see_as(schema.fields_by_name.get(array.name))
        self.fields = tuple(array.field for array in self._arrays)

    def _check_contents(self, size: int) -> None:
        """Passes where the list of arrays at the end of the file is small."""
        self._file.seek(max(0, size - (1 << 16) - 22))
        tail = self._file.read((1 << 16) + 22)
        at = tail.rfind(b"PK\5\6")
        length = struct.unpack_from("<I", tail, at + 12)[0] if 0 <= at <= len(tail) - 22 else -1
        if not 0 <= length <= MAX_CONTENTS:
            raise self.broken("it is no npz file" if length < 0 else f"its list of arrays ({length} bytes) must be at most {MAX_CONTENTS} bytes")

    def opened(self, member: zipfile.ZipInfo) -> IO[bytes]:
        """The bytes of an array's file, in a stream of their own."""
        return self._zip.open(member)

    def parts(self, start: int, rows: int) -> Iterator[dict[str, torch.Tensor]]:
        with ExitStack() as streams:
            try:
                opened = [(array, streams.enter_context(array.values())) for array in self._arrays]
                for array, stream in opened:
                    _skip(stream, start * array.row_bytes)
            except _BROKEN as error:
                raise self.broken(error) from None
            for first in range(start, self.rows, rows):
                count = min(rows, self.rows - first)
                yield {array.name: array.read(stream, count) for array, stream in opened}
            for array, stream in opened:
                array.check_end(stream)


class _Array:
    """One of the arrays of a file: its head was checked."""

    def __init__(self, reader: _Npz, member: zipfile.ZipInfo) -> None:
        self._reader, self._member, self.name = reader, member, member.filename.removesuffix(".npy")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise reader.broken(f"array {self.name!r} is encrypted, or compressed in a way that npz files are not")
        try:
            with reader.opened(member) as stream:
                self._head, found = _head_of(stream)
        except _BROKEN as error:
            raise reader.broken(f"array {self.name!r}: {error}") from None
        self.shape, fortran_order, self._dtype = found
        native = self._dtype.newbyteorder("=")
        if native not in OF_NUMPY:
            raise CodecError(f"{reader.name}: array {self.name!r} has dtype {self._dtype}, which cannot be stored; objects would be pickles")
        self.dtype = OF_NUMPY[native]
        self._check(fortran_order)
        self.row_bytes = self._dtype.itemsize * math.prod(self.shape[1:])

    def _check(self, fortran_order: bool) -> None:
        if not 1 <= len(self.shape) <= MAX_RANK or not all(0 <= size < 1 << 48 for size in self.shape):
            raise self._reader.broken(f"array {self.name!r} has shape {str(self.shape)[:100]}: the first dimension must be the rows")
        if fortran_order and len(self.shape) > 1:
            raise CodecError(f"{self._reader.name}: array {self.name!r} lies in Fortran's order: save it as np.ascontiguousarray of it")
        expected = self._head + self._dtype.itemsize * math.prod(self.shape)
        if self._member.file_size != expected:
            raise self._reader.broken(f"array {self.name!r} must have {expected} bytes with its head, and has {self._member.file_size}")

    @property
    def field(self) -> Field:
        """The field that it is."""
        return Field(self.name, self.dtype, self.shape[1:])

    def see_as(self, field: Field | None) -> None:
        """Takes the dtype of a field that NumPy does not have, where the array has its bits."""
        if field is not None and _SAME_BITS.get(field.dtype) == self._dtype:
            self.dtype = field.dtype

    def values(self) -> IO[bytes]:
        """A stream that stands before the first value."""
        stream = self._reader.opened(self._member)
        _skip(stream, self._head)
        return stream

    def read(self, stream: IO[bytes], rows: int) -> torch.Tensor:
        """The next rows."""
        shape = (rows, *self.shape[1:])
        if not self.row_bytes:
            return torch.empty(shape, dtype=self.dtype, device="cpu")
        memory = bytearray(_read(self._reader, stream, rows * self.row_bytes, self.name))
        if self.dtype is torch.bool:
            return check_bools(self._reader, self.name, torch.frombuffer(memory, dtype=torch.uint8)).view(shape)
        values = np.frombuffer(memory, self._dtype)
        return torch.from_numpy(values.astype(self._dtype.newbyteorder("="), copy=False)).view(self.dtype).view(shape)

    def check_end(self, stream: IO[bytes]) -> None:
        """Passes where the stream is at its end; zipfile compares the checksum there."""
        try:
            rest = stream.read(1)
        except _BROKEN as error:
            raise self._reader.broken(f"array {self.name!r}: {error}") from None
        if rest:
            raise self._reader.broken(f"array {self.name!r} goes on after its last value")


def _head_of(stream: IO[bytes]) -> tuple[int, tuple[tuple[int, ...], bool, Any]]:
    """The length of an array's head, and its shape, order and dtype.

    Raises:
        ValueError: it is no array.
    """
    start = stream.read(8)
    width = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}.get(start[6:8])
    if start[:6] != b"\x93NUMPY" or width is None:
        raise ValueError("it is no array of NumPy")
    length = stream.read(width)
    count = int.from_bytes(length, "little")
    if count > MAX_HEAD:
        raise ValueError(f"its head ({count} bytes) must be at most {MAX_HEAD} bytes")
    head = stream.read(count)
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        return 8 + width + count, read(io.BytesIO(length + head))
    except (TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, KeyError) as error:
        raise ValueError(f"its head is broken: {str(error)[:100]}") from None


def _read(reader: _Npz, stream: IO[bytes], count: int, name: str) -> bytes:
    try:
        data = stream.read(count)
    except _BROKEN as error:
        raise reader.broken(f"array {name!r}: {error}") from None
    if len(data) < count:
        raise reader.broken(f"array {name!r} ends before its last value")
    return data


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        data = stream.read(min(count, 1 << 20))
        if not data:
            raise EOFError("an array ends before its last value")
        count -= len(data)


NPZ = FileFormat("npz", _write, _Npz)
"""npz: every dtype, some of them as integers."""
