"""What a page says of the fields of a table, and which of their values come at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay.errors import FieldNotFoundError
from tdreplay.fields import DTYPE_NAMES, Field
from tdreplay.schema import Schema
from tdreplay.system_fields import STEP_NAMES
from tdreplay.table_description import TableDescription
from tdreplay_client.dashboard.limits import INLINE_BYTES, SHOWN_ELEMENTS, VALUE_BYTES
from tdreplay_client.dashboard.numbers import elements
from tdreplay_client.dashboard.pictures import layouts

__all__ = ["column", "field_named", "field_to_json", "has_column", "inline", "is_scalar", "user_fields", "values_to_json"]


def field_to_json(field: Field) -> dict[str, Any]:
    """A field: its name, dtype and shape, its bytes a row, in which layouts it is an image, and whether its values can be shown at all."""
    return {
        "name": field.name,
        "dtype": DTYPE_NAMES[field.dtype],
        "shape": list(field.shape),
        "bytes": field.row_bytes,
        "layouts": list(layouts(field)),
        "too_large": field.row_bytes > VALUE_BYTES,
    }


def user_fields(table: TableDescription) -> list[Field]:
    """The fields that users insert, without those by which a trajectory's writer says which step a row is."""
    fields = () if table.schema is None else table.schema.fields
    return [field for field in fields if not (table.config.trajectories and field.name in STEP_NAMES)]


def field_named(table: TableDescription, name: str) -> Field:
    """The field of that name that users insert.

    Raises:
        FieldNotFoundError: there is none.
    """
    field = next((field for field in user_fields(table) if field.name == name), None)
    if field is None:
        raise FieldNotFoundError(f"the table has no field {name[:80]!r}")
    return field


def is_scalar(field: Field, schema: Schema) -> bool:
    """Whether a row has one real number of it, or one for each of its own batch dimensions."""
    return field.shape == schema.row_shape and not field.dtype.is_complex


def inline(fields: Iterable[Field], row_bytes: int, value_bytes: int = INLINE_BYTES) -> list[Field]:
    """The fields whose values come with their rows: no image, of at most `value_bytes`, the smallest first, until a row has `row_bytes`."""
    chosen: list[Field] = []
    for field in sorted(fields, key=lambda field: field.row_bytes):
        row_bytes -= field.row_bytes
        if row_bytes < 0 or field.row_bytes > value_bytes:
            break
        if not layouts(field):
            chosen.append(field)
    return chosen


def column(rows: TensorDict, name: str) -> torch.Tensor:
    """The values of a field, in all rows: shape [n, ...]."""
    found: torch.Tensor = rows.get(tuple(name.split(".")))
    return found


def has_column(rows: TensorDict, name: str) -> bool:
    """Whether there is such a field."""
    return rows.get(name, None) is not None


def values_to_json(rows: TensorDict, fields: Iterable[Field], most: int = SHOWN_ELEMENTS) -> list[dict[str, Any]]:
    """For each row the first numbers of each field: name -> a number, or for a field with a shape a list of at most `most` numbers."""
    found: list[dict[str, Any]] = [{} for _ in range(rows.batch_size[0])]
    for field in fields:
        values = column(rows, field.name).reshape(len(found), -1)[:, :most]
        for row, numbers in zip(found, _split(elements(values), len(found)), strict=True):
            row[field.name] = numbers if field.shape else numbers[0]
    return found


def _split(numbers: list[Any], parts: int) -> list[list[Any]]:
    length = len(numbers) // parts
    return [numbers[start * length : (start + 1) * length] for start in range(parts)]
