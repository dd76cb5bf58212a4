"""Rows gathered into a block, one at a time, each written straight into the memory that will carry it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from tensordict import TensorDictBase, is_tensor_collection

from tdreplay.columns import from_row
from tdreplay.errors import CodecError, SchemaError
from tdreplay.memory import RAW, Rows
from tdreplay.schema import DTYPE_NAMES, Columns, Schema
from tdreplay_client.identities import Number
from tdreplay_client.inserts import InsertCall
from tdreplay_client.parcels import Parcel, block_layout, rows_of, rows_per_block

__all__ = ["Row", "Staging", "Values", "columns_of", "schema_of", "values_of"]

Row: TypeAlias = "TensorDictBase | Mapping[str, Any]"
"""A TensorDict without a row dimension, or a dict (nested or not) of tensors, arrays or scalars."""

Values: TypeAlias = dict[str, Any]
"""Field name -> tensor, array or scalar."""


def values_of(row: Row) -> tuple[Values, tuple[int, ...]]:
    """The fields of a row, nested names joined with '.', and its row shape.

    Raises:
        CodecError: a field cannot travel; the message names it.
    """
    if is_tensor_collection(row):  # Asked first: a TensorDict is a Mapping too.
        columns, row_shape = from_row(row)
        return {name: column[0] for name, column in columns.items()}, row_shape
    if not isinstance(row, Mapping):
        raise CodecError(f"a row ({type(row).__name__}) must be a TensorDict or a dict")
    values: Values = {}
    _flatten(row, "", values)
    return values, ()


def _flatten(row: Mapping[str, Any], prefix: str, values: Values) -> None:
    for key, value in row.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or not key or "." in key:
            raise CodecError(f"field {name!r}: a key must be a text that is not empty and has no '.', which joins nested keys")
        if isinstance(value, Mapping):
            _flatten(value, f"{name}.", values)
        else:
            values[name] = value.detach() if isinstance(value, torch.Tensor) else value


def schema_of(values: Values, row_shape: tuple[int, ...]) -> Schema:
    """The schema that a first row fixes: of arrays and tensors their own dtypes, of scalars bool, int64 and float32."""
    return Schema.of(columns_of(values), row_shape)


def columns_of(values: Values) -> dict[str, torch.Tensor]:
    """A row as columns of length 1, of the dtypes that `schema_of` says."""
    return {name: _as_tensor(name, value).unsqueeze(0) for name, value in values.items()}


def _as_tensor(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel: {error}") from None


class Staging:
    """A block with room for some rows, and the rows that are in it so far.

    Args:
        call: that the message is for.
        schema: of the rows.
        rows: room for so many; fewer where they would be more than a block.
        number: of the block.

    Attributes:
        rows: that are in it.
        portions: that are complete.
        portion_rows: that came since then.
    """

    def __init__(self, call: InsertCall, schema: Schema, rows: int, number: Number) -> None:
        self._call, self._schema, self._number = call, schema, number
        self._room = min(rows, rows_per_block(schema))
        self.rows = self.portion_rows = self.portions = 0
        self._parcel = call.parcel(block_layout(schema, self._room), number)
        places = self._parcel.places
        self._arrays = {field.name: _typed(places.get(field.name), self._room, field.dtype, field.shape) for field in schema.fields}

    @property
    def full(self) -> bool:
        """Whether there is no room left."""
        return self.rows == self._room

    @property
    def room(self) -> int:
        """How many more rows go in."""
        return self._room - self.rows

    def end_portion(self) -> None:
        """Makes the rows that came since the last portion another one."""
        self.portions += 1
        self.portion_rows = 0

    def append(self, values: Values) -> None:
        """Copies a row in; there must be room.

        Raises:
            SchemaError: a field is missing, extra, misshapen or of another dtype. The row is not in then.
        """
        arrays = self._arrays
        if values.keys() != arrays.keys():
            self._schema.check(schema_of(values, self._schema.row_shape))
        at = self.rows
        for name, array in arrays.items():
            value = values[name]
            if isinstance(value, torch.Tensor):
                value = self._from_tensor(name, value)
            if isinstance(value, np.ndarray | np.generic):
                if value.dtype != array.dtype or value.shape != array.shape[1:]:
                    self._refuse(name, f"{value.dtype}{list(value.shape)}")
            elif not _scalar_fits(value, array):
                self._refuse(name, f"{type(value).__name__} {value!r:.40}")
            array[at] = value
        self.rows = at + 1
        self.portion_rows += 1

    def extend(self, columns: Columns, rows: int) -> None:
        """Copies `rows` rows of the schema in; there must be room."""
        for name, place in self._parcel.places.items():
            place[self.rows : self.rows + rows] = rows_of(columns[name])
        self.rows += rows
        self.portion_rows += rows

    def _from_tensor(self, name: str, value: torch.Tensor) -> Any:
        expected = self._schema.by_name[name].dtype
        if value.dtype is not expected:
            self._refuse(name, f"{DTYPE_NAMES.get(value.dtype, value.dtype)}{list(value.shape)}")
        raw = value.cpu().resolve_conj().resolve_neg()
        return raw.view(RAW.get(expected, expected)).numpy()

    def _refuse(self, name: str, got: str) -> None:
        raise SchemaError(f"field {name!r}: expected {self._schema.by_name[name]} in every row, got {got}")

    def parcel(self) -> Parcel:
        """The message, with a block of the rows that are in it. Once full it is the memory itself; before that, a copy of its part."""
        if self.full:
            return self._parcel
        parcel = self._call.parcel(block_layout(self._schema, self.rows), self._number)
        for name, place in parcel.places.items():
            place[:] = self._parcel.places[name][: self.rows]
        self._call.release(self._parcel)
        return parcel


def _typed(place: Rows | None, rows: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Any:
    """A field's place as an array of its own dtype, shape [rows, *shape]."""
    numpy_dtype = torch.empty(0, dtype=RAW.get(dtype, dtype)).numpy().dtype
    if place is None:
        return np.empty((rows, *shape), numpy_dtype)
    return place.view(np.uint8).view(numpy_dtype).reshape(rows, *shape)


def _scalar_fits(value: Any, array: Any) -> bool:
    """Whether a Python scalar goes into the field without a change of its kind: an int into a float field, but no float into an int field."""
    kinds = {bool: "b", int: "iuf", float: "f", complex: "c"}.get(type(value), "")
    return array.ndim == 1 and array.dtype.kind in kinds
