"""Rows gathered into a block, one at a time, each written straight into the memory that will carry it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from tdreplay.errors import SchemaError
from tdreplay.fields import DTYPE_NAMES, Field
from tdreplay.insert_id import InsertId
from tdreplay.limits import shown
from tdreplay.memory import RAW, Rows, rows_of
from tdreplay.rows import Given
from tdreplay.schema import Columns, Schema
from tdreplay.system_fields import PRIORITY
from tdreplay.values import NUMPY, dense, fitted, quick_limits
from tdreplay_client.writing.insert_messages import InsertMessage, InsertMessages, block_layout, rows_per_block

__all__ = ["Staging"]


class _Place(NamedTuple):
    """Where a field's values go, as an array of shape [rows, *shape]; of RAW's dtype where NumPy does not have the field's."""

    array: Any
    field: Field
    numpy: np.dtype[Any] | None  # The field's dtype, where NumPy has it.
    limits: dict[type, tuple[Any, Any]]


class Staging:
    """A block with room for some rows, and the rows that are in it so far.

    Args:
        messages: makes the message in which the rows go out.
        schema: the schema of the rows.
        rows: the number of rows that there is room for; fewer where they would be more than a block.
        insert_id: the name of the block.
        since: when it was made, in seconds of any clock.
        cast: whether values of other dtypes are converted.
        has_priorities: whether the rows have priorities.

    Attributes:
        has_priorities: the same.
        rows: the number of rows so far.
        units: the number of complete units among them; see `FlushPolicy`.
        since: when it was made.
    """

    def __init__(
        self,
        messages: InsertMessages,
        schema: Schema,
        rows: int,
        insert_id: InsertId,
        since: float,
        *,
        cast: bool = False,
        has_priorities: bool = False,
    ) -> None:
        self._messages, self._schema, self._insert_id, self._cast = messages, schema, insert_id, cast
        self._room = min(rows, rows_per_block(schema))
        self.rows = self.units = self._unit_start = 0
        self.since = since
        self.has_priorities = has_priorities
        self._message = self._new_message(self._room)
        places = self._message.places
        self._priorities = places[PRIORITY.name].view(np.float64) if has_priorities else np.empty(0)
        self._fields = {field.name: _place(places.get(field.name), self._room, field) for field in schema.fields}

    def _new_message(self, rows: int) -> InsertMessage:
        block = block_layout(self._schema, rows, has_priorities=self.has_priorities)
        return self._messages.new(block, self._insert_id, has_priorities=self.has_priorities)

    @property
    def full(self) -> bool:
        """Whether there is no room left."""
        return self.rows == self._room

    @property
    def room(self) -> int:
        """How many more rows go in."""
        return self._room - self.rows

    @property
    def unit_rows(self) -> int:
        """How many rows came since the last complete unit."""
        return self.rows - self._unit_start

    def end_unit(self) -> None:
        """Makes the rows that came since the last unit another one."""
        self.units += 1
        self._unit_start = self.rows

    def place(self, row: Given, rows: int = 1) -> None:
        """Copies a row to where the next one goes; there must be room. It is not in before `rows` counts it.

        Raises:
            SchemaError: a field is missing, extra, misshapen or of another dtype, or a number does not fit.
        """
        values, at = self._checked(row), self.rows
        for name, (array, field, dtype, limits) in self._fields.items():
            value = values[name]
            if isinstance(value, torch.Tensor):
                value = self._from_tensor(field, value)
            elif isinstance(value, np.ndarray):
                if value.dtype != dtype or value.shape != field.shape or type(value) is not np.ndarray:
                    value = self._converted(field, value)
            elif not _lies_between(value, limits.get(type(value))) or field.shape:
                value = self._converted(field, value)
            array[at] = value
        if self.has_priorities and row.priorities is not None:
            self._priorities[at] = row.priorities[0]

    def _checked(self, row: Given) -> Mapping[str, Any]:
        """The values of a row that has the fields of the schema."""
        values = row.values if row.values.keys() == self._fields.keys() else row.known_to(self._schema)
        if values.keys() != self._fields.keys() or row.row_shape != self._schema.row_shape or row.dim_names:
            self._schema.check(row.schema(row.columns(self._schema, cast=self._cast)))
        return values

    def place_batch(self, columns: Columns, rows: int) -> None:
        """Copies `rows` rows of the schema to where the next ones go; there must be room. They are not in before `rows` counts them.

        Where the rows have priorities, these are one of the columns.
        """
        for name, place in self._message.places.items():
            place[self.rows : self.rows + rows] = rows_of(columns[name])

    def has_placed(self, other: Staging, at: int, rows: int) -> bool:
        """Whether the rows that were placed, but not taken, equal `rows` rows of another block, or of this one, from row `at` on."""
        here, there = slice(self.rows, self.rows + rows), slice(at, at + rows)
        same = self.has_priorities is other.has_priorities and self._priorities[here].tobytes() == other._priorities[there].tobytes()
        return same and all(place.array[here].tobytes() == other._fields[name].array[there].tobytes() for name, place in self._fields.items())

    def _from_tensor(self, field: Field, value: torch.Tensor) -> Any:
        if value.dtype is not field.dtype or value.shape != field.shape:
            return self._converted(field, value)
        try:
            return _raw(value)
        except (TypeError, RuntimeError):
            dense(field.name, value)  # Says what is wrong with it.
            raise

    def _converted(self, field: Field, value: Any) -> Any:
        """A value that is not of the field's dtype and shape as it is, brought there where that is allowed."""
        column = fitted(field.name, value, field, cast=self._cast, batch=False)
        if column.dtype is not field.dtype or column.shape != field.shape:
            raise SchemaError(f"field {field.name!r}: expected {field} in every row, got {_kind(value)}")
        return _raw(column)

    def message(self) -> InsertMessage:
        """The message, with a block of the rows that are in it. Once full it is the memory itself; before that, a copy of its part."""
        if self.full:
            return self._message
        message = self._new_message(self.rows)
        for name, place in message.places.items():
            place[:] = self._message.places[name][: self.rows]
        return message

    def release_unless(self, message: InsertMessage | None) -> None:
        """Gives back its memory, unless `message`, which took over the rows, lies in it."""
        if message is None or message.memory is not self._message.memory:
            self._messages.release(self._message)


def _place(place: Rows | None, rows: int, field: Field) -> _Place:
    dtype = torch.empty(0, dtype=RAW.get(field.dtype, field.dtype), device="cpu").numpy().dtype
    array = np.empty((rows, *field.shape), dtype) if place is None else place.view(np.uint8).view(dtype).reshape(rows, *field.shape)
    return _Place(array, field, None if field.dtype in RAW else NUMPY[field.dtype], quick_limits(field.dtype))


def _lies_between(value: Any, limits: tuple[Any, Any] | None) -> bool:
    return limits is not None and limits[0] <= value <= limits[1]


def _raw(value: torch.Tensor) -> Any:
    """A tensor of any device and layout as an array: of RAW's dtype where NumPy does not have its own."""
    host = value.detach().cpu().resolve_conj().resolve_neg()
    return (host.view(RAW[host.dtype]) if host.dtype in RAW else host).numpy()


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{DTYPE_NAMES.get(value.dtype, value.dtype)}{list(value.shape)}"
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray | np.generic) else f"{type(value).__name__} {shown(value, 40)}"
