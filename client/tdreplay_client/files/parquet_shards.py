"""Shards of Parquet, which pyarrow reads and writes.

A field of one value a row is a column of its type. A field of up to 1024 values a row is a column of lists of that length. Larger ones, as images,
and the dtypes that Arrow does not have (bfloat16, float8, complex) are columns of bytes of fixed length. Each column says its dtype and shape in its
metadata, under the key ``tdreplay``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from tdreplay.errors import CodecError, FailedPreconditionError, ReplayError
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.limits import MAX_RANK
from tdreplay.memory import RAW, rows_of
from tdreplay.schema import Columns
from tdreplay_client.files.npz_shards import OF_NUMPY
from tdreplay_client.files.shards import MAX_FIELDS, FileFormat, ShardLayout, ShardReader, check_bools

__all__ = ["PARQUET"]

KEY = b"tdreplay"
MAX_LISTED = 1024
"""The most values a row that are a list."""

MAX_CHUNK_BYTES = 1 << 30
"""The most bytes of one column in a group of rows of a file. Arrow may take so much memory at once."""

MAX_FOOTER = 16 << 20
"""The most bytes of names, and the most entries, that the end of a file may have. Arrow reads it as a whole."""


def _check() -> None:
    """Passes where pyarrow is there.

    Raises:
        FailedPreconditionError: it is not.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - to import it is the check.
    except ImportError:
        raise FailedPreconditionError("Parquet needs pyarrow, which is not installed: pip install 'tdreplay[parquet]'") from None


# -- writing ----------------------------------------------------------------------------------------------------------------------------------


def _write(file: BinaryIO, shard: ShardLayout, parts: Sequence[Columns]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [field for field in shard.fields if field.row_bytes]  # The others are in the metadata alone.
    schema = pa.schema([_arrow_field(field) for field in fields], metadata={KEY: json.dumps([_described(field) for field in shard.fields])})
    plain = [field.name for field in fields if not pa.types.is_fixed_size_binary(schema.field(field.name).type)]
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=plain, write_statistics=plain) as writer:
        for part in parts:
            arrays = [_arrow_array(part[field.name], schema.field(field.name).type) for field in fields]
            writer.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=max(1, len(part[shard.fields[0].name])))


def _described(field: Field) -> dict[str, Any]:
    return {"name": field.name, "dtype": DTYPE_NAMES[field.dtype], "shape": list(field.shape)}


def _arrow_field(field: Field) -> Any:
    import pyarrow as pa

    values, numbers = math.prod(field.shape), _ARROW_NAMES.get(field.dtype)
    if numbers is None or values > MAX_LISTED:
        kind = pa.binary(field.row_bytes)
    else:
        number = getattr(pa, numbers)()
        kind = pa.list_(number, values) if field.shape else number
    return pa.field(field.name, kind, nullable=False, metadata={KEY: json.dumps(_described(field))})


def _arrow_array(column: torch.Tensor, kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(rows_of(column).tobytes())])
    values = column.cpu().contiguous().numpy().reshape(-1)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values, kind.value_type), type=kind)
    return pa.array(values, kind)


_ARROW_NAMES = {
    dtype: {"bool": "bool_"}.get(of_numpy.name, of_numpy.name) for of_numpy, dtype in OF_NUMPY.items() if of_numpy.kind != "c" and dtype not in RAW
}
"""dtype -> the name that Arrow has for it."""


# -- reading ----------------------------------------------------------------------------------------------------------------------------------


class _Parquet(ShardReader):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, name)
        _check()
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._errors: tuple[type[Exception], ...] = (pa.ArrowException, OSError, ValueError, TypeError, OverflowError)
        try:
            self._parquet = pq.ParquetFile(file, thrift_string_size_limit=MAX_FOOTER, thrift_container_size_limit=MAX_FOOTER, buffer_size=1 << 16)
            self._check_sizes()
            self._columns = [_Column(self, field) for field in _leaves(self._parquet.schema_arrow, "")]
        except ReplayError:  # Some are a ValueError, too.
            raise
        except self._errors as error:
            raise self.broken(f"it is no Parquet file that can be read: {str(error)[:200]}") from None
        self._empty = _without_bytes(self._parquet.schema_arrow.metadata, self)
        self.rows = self._parquet.metadata.num_rows
        first = self._first()
        self.fields = tuple([column.field_of(first) for column in self._columns] + self._empty)
        if not 0 < len(self.fields) <= MAX_FIELDS or len({field.name for field in self.fields}) < len(self.fields):
            raise self.broken(f"it must have 1 to {MAX_FIELDS} columns, each name once, and it has {len(self.fields)}")

    def _check_sizes(self) -> None:
        """Passes where no column of a group of rows claims too much."""
        found = self._parquet.metadata
        for number in range(found.num_row_groups):
            group = found.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                most = max(column.total_uncompressed_size, 8 * column.num_values)
                if not 0 <= most <= MAX_CHUNK_BYTES:
                    raise self.broken(f"a column of one group of rows has {most} bytes: at most {MAX_CHUNK_BYTES} can be read. Write smaller groups")

    def _first(self) -> Any:
        """The first row, by which lists of columns that say no shape are known; None where there is none."""
        try:
            return next(self._parquet.iter_batches(1, use_threads=False), None)
        except self._errors as error:
            raise self.broken(str(error)[:200]) from None

    def parts(self, start: int, rows: int) -> Iterator[dict[str, torch.Tensor]]:
        done = 0
        try:
            for batch in self._parquet.iter_batches(rows, use_threads=False):
                skipped = min(max(0, start - done), batch.num_rows)
                done += batch.num_rows
                if skipped < batch.num_rows:
                    yield self._converted(batch.slice(skipped))
        except ReplayError:
            raise
        except self._errors as error:
            raise self.broken(str(error)[:200]) from None
        if done != self.rows:
            raise self.broken(f"it has {done} rows, and says that they are {self.rows}")

    def _converted(self, batch: Any) -> dict[str, torch.Tensor]:
        made = {column.name: column.converted(batch) for column in self._columns}
        return made | {field.name: torch.empty((batch.num_rows, *field.shape), dtype=field.dtype, device="cpu") for field in self._empty}

    def close(self) -> None:
        import pyarrow as pa

        self._parquet.close()
        super().close()
        pa.default_memory_pool().release_unused()  # Arrow would keep it for later.


class _Column:
    """A column of a file, and the field that it is."""

    def __init__(self, reader: _Parquet, leaf: tuple[tuple[str, ...], Any]) -> None:
        self._reader, (self._path, arrow) = reader, leaf
        self.name, self._type = ".".join(self._path), arrow.type
        said = _said(arrow.metadata)
        self._said = None if said is None or said.name != self.name else said
        self._field: Field | None = None

    def field_of(self, first: Any) -> Field:
        """The field, given the first row."""
        import pyarrow as pa

        if self._said is not None:
            self._field = self._said
        elif pa.types.is_fixed_size_binary(self._type):
            self._field = Field(self.name, torch.uint8, (self._type.byte_width,))
        else:
            numbers, shape = self._numbers(self._array(first) if first is not None else pa.nulls(0, self._type))
            self._field = Field(self.name, OF_NUMPY[numbers.dtype], shape)
        return self._field

    def converted(self, batch: Any) -> torch.Tensor:
        """The values of some rows."""
        import pyarrow as pa

        field, array, rows = self._field, self._array(batch), batch.num_rows
        assert field is not None  # noqa: S101 - `field_of` came before.
        if pa.types.is_fixed_size_binary(self._type):
            if self._type.byte_width != field.row_bytes:
                raise self._broken(f"has {self._type.byte_width} bytes a row, and {field} takes {field.row_bytes}")
            width = field.row_bytes
            raw = torch.frombuffer(bytearray(memoryview(array.buffers()[1])[array.offset * width : (array.offset + rows) * width]), dtype=torch.uint8)
            return (check_bools(self._reader, self.name, raw) if field.dtype is torch.bool else raw.view(field.dtype)).view((rows, *field.shape))
        numbers, shape = self._numbers(array)
        if (OF_NUMPY[numbers.dtype], math.prod(shape)) != (field.dtype, math.prod(field.shape)):
            raise self._broken(f"holds {numbers.dtype.name}{list(shape)}, and the rows before it {field}")
        return torch.from_numpy(numbers.copy()).view((rows, *field.shape))

    def _array(self, batch: Any) -> Any:
        import pyarrow.compute as pc

        array = batch.column(self._path[0])
        if self._path[1:]:
            array = pc.struct_field(array, list(self._path[1:]))
        self._check_no_null(array)
        return array.storage if hasattr(array, "storage") else array

    def _numbers(self, array: Any) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
        """The values of rows as numbers, and the shape of a row."""
        lists: list[int] = []
        while hasattr(array.type, "value_type") and hasattr(array, "flatten"):
            array, length = self._unlisted(array)
            lists.append(length)
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype not in OF_NUMPY:
            raise CodecError(f"{self._reader.name}: column {self.name!r} is of type {self._type}, which cannot be stored")
        return values, tuple(getattr(self._type, "shape", lists))  # A fixed-shape tensor says its shape.

    def _unlisted(self, array: Any) -> tuple[Any, int]:
        """The items of lists that are all of one length, and the length."""
        import pyarrow.compute as pc

        flat = array.flatten()
        self._check_no_null(flat)
        length = len(flat) // len(array) if len(array) else max(0, getattr(array.type, "list_size", 0))
        if len(array) and not pc.all(pc.equal(pc.list_value_length(array), length)).as_py():
            raise CodecError(f"{self._reader.name}: column {self.name!r} has lists of several lengths: all rows of a field have one shape")
        return flat, length

    def _check_no_null(self, array: Any) -> None:
        if array.null_count:
            raise CodecError(f"{self._reader.name}: column {self.name!r} has {array.null_count} nulls: a row has a value in every field")

    def _broken(self, why: str) -> Exception:
        return self._reader.broken(f"column {self.name!r} {why}")


def _leaves(fields: Any, prefix: str) -> list[tuple[tuple[str, ...], Any]]:
    """The columns, those of structs among them: the way to each, and what it is."""
    import pyarrow as pa

    found: list[tuple[tuple[str, ...], Any]] = []
    for field in fields:
        if pa.types.is_struct(field.type):
            found += [((field.name, *path), leaf) for path, leaf in _leaves(field.type, f"{prefix}{field.name}.")]
        else:
            found.append(((field.name,), field))
    return found


def _said(metadata: Any) -> Field | None:
    """The field that metadata describe; None: they describe none."""
    try:
        entry = json.loads((metadata or {})[KEY])
        return _field(entry)
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _field(entry: Any) -> Field:
    shape = tuple(entry["shape"])
    if len(shape) >= MAX_RANK or not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise ValueError("no shape")
    return Field(str(entry["name"]), DTYPES[entry["dtype"]], shape)


def _without_bytes(metadata: Any, reader: ShardReader) -> list[Field]:
    """The fields that have no column because they have no bytes."""
    try:
        said = [_field(entry) for entry in json.loads((metadata or {}).get(KEY, b"[]"))]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise reader.broken("what it says of its fields is broken") from None
    return [field for field in said if not field.row_bytes]


PARQUET = FileFormat("parquet", _write, _Parquet, _check)
"""Parquet: every dtype, some of them as bytes."""
