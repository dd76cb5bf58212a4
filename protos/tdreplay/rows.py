"""Rows as users give them, to columns: TensorDicts and dicts, one row or many. Client and server share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase, is_non_tensor, is_tensor_collection

from tdreplay.columns import collect, from_rows, leaves, without_system_fields
from tdreplay.errors import CodecError, InvalidArgumentError, SchemaError
from tdreplay.limits import MAX_NAME_LENGTH
from tdreplay.priorities import checked_priorities
from tdreplay.schema import Columns, DimNames, Schema, check_dim_names
from tdreplay.system_fields import DRAWN_NAMES, LOST_SHARDS, SYSTEM_NAMES
from tdreplay.values import fitted, has_dtype

__all__ = ["Given", "Row", "given_row", "given_rows"]

Row: TypeAlias = "TensorDictBase | Mapping[str, Any]"
"""A TensorDict, or a dict (nested or not) of tensors, arrays, numbers or lists of these."""

OF_A_DRAW = DRAWN_NAMES | {LOST_SHARDS}
"""What a sampled batch says of its draw, beside its system fields."""

PLAIN = frozenset({torch.Tensor, np.ndarray, bool, int, float, np.float32, np.float64, np.int64, np.bool_})
"""The types of most values. None of them is a dict, so their values need no closer look."""


class Given(NamedTuple):
    """Rows as a user gave them. Nothing is copied yet.

    Attributes:
        values: field name -> tensor, array, number or list. It has the value of the one row, or those of all rows.
        row_shape: batch dimensions of a row.
        rows: number of rows; None for one row whose values have no row dimension.
        dim_names: names of the batch dimensions, the first of which counts the rows; () if none has one.
        priorities: the priorities of all rows, checked; None: they get the highest one so far.
    """

    values: Mapping[str, Any]
    row_shape: tuple[int, ...]
    rows: int | None
    dim_names: DimNames = ()
    priorities: npt.NDArray[np.float64] | None = None

    @property
    def number(self) -> int:
        """The number of rows."""
        return 1 if self.rows is None else self.rows

    @property
    def typed(self) -> bool:
        """Whether every value has a dtype. Numbers have none: they take the dtype of the table's field."""
        return all(type(value) is torch.Tensor or has_dtype(value) for value in self.values.values())

    def columns(self, schema: Schema | None, *, cast: bool) -> Columns:
        """The rows as columns of shape [n, ...], views where possible. `tdreplay.values` says which values take the dtypes of `schema`.

        What says how the rows of a sampled batch were drawn is left out where the schema does not have it.

        Raises:
            CodecError: a field cannot be stored.
            SchemaError: a value does not fit; the message names it and the rule.
        """
        fields, batch = {} if schema is None else schema.fields_by_name, self.rows is not None
        columns = {name: fitted(name, value, fields.get(name), cast=cast, batch=batch) for name, value in self.known_to(schema).items()}
        return columns if batch else {name: column.unsqueeze(0) for name, column in columns.items()}

    def known_to(self, schema: Schema | None) -> Mapping[str, Any]:
        """The values, without those of a draw that the schema does not know."""
        if schema is None or OF_A_DRAW.isdisjoint(self.values):
            return self.values
        return {name: value for name, value in self.values.items() if name in schema.fields_by_name or name not in OF_A_DRAW}

    def prioritized(self, priorities: Any) -> Given:
        """The same rows with priorities, where these are not None. Fields of a draw are left out: tables with priorities have none of their own.

        Raises:
            InvalidArgumentError: one is negative, NaN or infinite, or there is another number of them.
        """
        if priorities is None:
            return self
        values = {name: value for name, value in self.values.items() if name not in DRAWN_NAMES}
        return self._replace(values=values, priorities=np.array(checked_priorities(priorities, self.number)))

    def schema(self, columns: Columns) -> Schema:
        """The schema of the rows, given their columns.

        Raises:
            SchemaError, CodecError: as `Schema.of`.
        """
        return Schema.of(columns, self.row_shape, self.dim_names)


def given_row(row: Row) -> Given:
    """One row: a TensorDict without a row dimension, or a dict. System fields are left out.

    Raises:
        CodecError: it is neither, or a field cannot be stored.
        SchemaError: something in it would be lost.
    """
    if is_tensor_collection(row):  # Asked first: a TensorDict is a Mapping too.
        data: TensorDictBase = row
        return Given(leaves(data), tuple(data.batch_size), None, _dim_names([None, *data.names]))
    return Given(without_system_fields(_flattened(row, 0), ()), (), None)


def given_rows(batch: Row) -> Given:
    """Many rows: a TensorDict of batch size [n, ...], or a dict whose values have a first dimension of n. System fields are left out.

    Raises:
        CodecError, SchemaError: as `given_row`.
        InvalidArgumentError: there is no row dimension, or no row.
    """
    if is_tensor_collection(batch):
        data: TensorDictBase = batch
        return Given(*from_rows(data), data.batch_size[0], _dim_names(data.names))
    values = _flattened(batch, 1)
    count = _count(values)
    return Given(without_system_fields(values, (count,)), (), count)


def _dim_names(names: list[str | None]) -> DimNames:
    return check_dim_names(names, len(names)) if any(names) else ()


def _flattened(row: Mapping[str, Any], dimensions: int) -> dict[str, Any]:
    """The fields of a dict. The TensorDicts in it must have that many batch dimensions."""
    if not isinstance(row, Mapping):
        raise CodecError(f"data ({type(row).__name__}) must be a TensorDict, or a dict")
    values: dict[str, Any] = {}
    _flatten(row, "", dimensions, values)
    return values


def _flatten(row: Mapping[str, Any], prefix: str, dimensions: int, values: dict[str, Any]) -> None:
    for key, value in row.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or not key or "." in key:
            raise CodecError(f"field {name!r}: a key must be a text that is not empty and has no '.', which joins nested keys")
        if type(value) in PLAIN:
            values[name] = value
        elif is_non_tensor(value):
            raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel; it must be a tensor, an array, a number or a list of them")
        elif isinstance(value, Mapping) or is_tensor_collection(value):
            _flatten_nested(value, name, dimensions, values)
        else:
            values[name] = value


def _flatten_nested(value: Any, name: str, dimensions: int, values: dict[str, Any]) -> None:
    if len(name) > MAX_NAME_LENGTH:  # The names below it are longer still. A dict that holds itself ends here, too.
        raise SchemaError(f"field {name[:80]!r}: a name must be at most {MAX_NAME_LENGTH} characters long")
    before = len(values)
    if not is_tensor_collection(value):
        _flatten(value, f"{name}.", dimensions, values)
    elif len(value.batch_size) == dimensions:
        collect(value, f"{name}.", values)
    else:
        wanted = "[n]" if dimensions else "[]"
        raise SchemaError(f"field {name!r}: its batch_size ({list(value.batch_size)}) must be {wanted}, as that of the dict around it")
    if len(values) == before:
        raise SchemaError(f"field {name!r}: an empty dict cannot be stored: there is no field that would bring it back")


def _count(values: Mapping[str, Any]) -> int:
    """The number of rows in a dict of fields."""
    counts = {name: _length(name, value) for name, value in values.items()}
    count = next((count for name, count in counts.items() if name not in SYSTEM_NAMES), 1)
    for name, other in counts.items():
        if other != count:
            raise SchemaError(f"field {name!r}: it has {other} rows, and the fields before it have {count}")
    if count == 0:
        raise InvalidArgumentError(f"fields {sorted(values)}: the batch is empty, it must hold at least one row")
    return count


def _length(name: str, value: Any) -> int:
    try:
        return len(value)
    except TypeError:
        raise SchemaError(f"field {name!r}: {type(value).__name__} has no dimension for the rows; for one row use add") from None
