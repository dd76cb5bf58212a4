"""The schema of a table's rows, and the check that a batch fits it. The check comes before anything is changed."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import torch

from tdreplay.errors import CodecError, FieldNotFoundError, SchemaError
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.limits import MAX_MESSAGE_BYTES, MAX_NAME_LENGTH, MAX_RANK, check_whole, shown
from tdreplay.system_fields import NAMEABLE_FIELDS, PERSISTED_FIELDS, SENT_FIELDS, SYSTEM_FIELDS

__all__ = ["Columns", "DimNames", "Schema", "check_dim_names"]

Columns = Mapping[str, torch.Tensor]
"""Field name -> tensor of shape [n, *field shape], with the same n for all fields."""

DimNames: TypeAlias = "tuple[str | None, ...]"
"""The names of the batch dimensions, None for one without a name. It is () if no dimension has a name."""

METADATA = "__metadata__"


@dataclass(frozen=True)
class Schema:
    """The fields of every row of a table, and its batch dimensions.

    Attributes:
        fields: the fields that users insert, sorted by name.
        row_shape: the batch dimensions after the first; () unless a row is itself a batch, as a trajectory segment is.
        dim_names: the names of the batch dimensions, the first of which counts the rows. None for a dimension without a name; () if none has one.
    """

    fields: tuple[Field, ...]
    row_shape: tuple[int, ...] = ()
    dim_names: DimNames = ()

    @classmethod
    def of(cls, columns: Columns, row_shape: tuple[int, ...] = (), dim_names: DimNames = ()) -> Schema:
        """The schema of the rows in `columns`.

        Raises:
            SchemaError: a field has a name that it cannot have, a row is too large for a message, or there is no field.
            CodecError: a field cannot be stored.
        """
        return _schema_of(tuple((name, column.dtype, column.shape[1:]) for name, column in columns.items()), row_shape, dim_names)

    @classmethod
    def made_of(cls, fields: Iterable[Field], row_shape: tuple[int, ...] = (), dim_names: DimNames = ()) -> Schema:
        """The schema with these fields, in any order.

        Raises:
            SchemaError: a field has a name that it cannot have, a row is too large for a message, or there is no field.
            CodecError: a field cannot be stored.
        """
        named = {field.name: field for field in fields}
        if not named:
            raise SchemaError("a row needs at least one field, and this one has none")
        for field in named.values():
            _check_storable(field, named)
        schema = cls(tuple(named[name] for name in sorted(named)), row_shape, dim_names)
        if schema.row_bytes > MAX_MESSAGE_BYTES - (1 << 20):
            raise SchemaError(f"a row ({schema.row_bytes} bytes) must be at most {MAX_MESSAGE_BYTES - (1 << 20)} bytes, so that it fits a message")
        return schema

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON values, for files."""
        fields = [{"name": field.name, "dtype": DTYPE_NAMES[field.dtype], "shape": list(field.shape)} for field in self.fields]
        names = {"dim_names": list(self.dim_names)} if self.dim_names else {}
        return {"fields": fields, "row_shape": list(self.row_shape), **names}

    @classmethod
    def from_json(cls, entries: Any) -> Schema:
        """The schema that `to_json` wrote.

        Raises:
            CodecError, SchemaError: `entries` are not a schema, or name a dtype that this version does not know.
        """
        try:
            fields = [Field(str(entry["name"]), DTYPES[entry["dtype"]], _shape(entry["shape"])) for entry in entries["fields"]]
            row_shape = _shape(entries["row_shape"])
            return cls.made_of(fields, row_shape, check_dim_names(entries.get("dim_names", []), 1 + len(row_shape)))
        except (TypeError, KeyError, ValueError) as error:
            raise CodecError(f"not a schema: {type(error).__name__} {error}") from None

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """The fields that a request may name, system fields among them, by name."""
        return {field.name: field for field in (*self.fields, *NAMEABLE_FIELDS)}

    @cached_property
    def fields_by_name(self) -> dict[str, Field]:
        """The fields that users insert, by name."""
        return {field.name: field for field in self.fields}

    @cached_property
    def stored_fields(self) -> tuple[Field, ...]:
        """The columns that a table keeps: the fields that users insert, and after them the persisted system fields."""
        return (*self.fields, *PERSISTED_FIELDS)

    @cached_property
    def sent_fields(self) -> tuple[Field, ...]:
        """The fields of a batch if the request names none: those that users insert, and after them the system fields that are sent."""
        return (*self.fields, *SENT_FIELDS)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row as it is stored."""
        return sum(field.row_bytes for field in self.stored_fields)

    def select(self, names: Iterable[str] | None) -> tuple[Field, ...]:
        """The named fields, in that order; the name of a parent stands for all fields below it. None stands for `sent_fields`.

        Raises:
            FieldNotFoundError: a name is not that of a field, a field comes twice, or there is no name at all.
        """
        if names is None:
            return self.sent_fields
        wanted = [names] if isinstance(names, str) else list(names)
        chosen = [field for name in dict.fromkeys(wanted) for field in self._named(name)]
        if not wanted or len(set(wanted)) < len(wanted) or len(set(chosen)) < len(chosen):
            raise FieldNotFoundError(f"fields ({shown(wanted)}) must name at least one field, and each one once")
        return tuple(chosen)

    def _named(self, name: str) -> list[Field]:
        if name in self.by_name:
            return [self.by_name[name]]
        below = [field for field in self.fields if field.name.startswith(f"{name}.")]
        if not below:
            raise FieldNotFoundError(f"fields: {shown(name)} is not a field of the table, which has {sorted(self.by_name)}")
        return below

    def without(self, names: Collection[str]) -> Schema:
        """The schema without these fields.

        Raises:
            SchemaError: none is left.
        """
        return _schema_of(
            tuple((field.name, field.dtype, field.shape) for field in self.fields if field.name not in names), self.row_shape, self.dim_names
        )

    def check(self, other: Schema) -> None:
        """Checks that `other`, a batch's schema, is this one.

        Raises:
            SchemaError: it is not. The message names the first field that differs, what was expected, and what came.
        """
        if other is self or other == self:
            return
        expected, got = self.fields_by_name, other.fields_by_name
        for name in sorted(expected.keys() | got.keys()):
            if name not in got:
                raise SchemaError(f"field {name!r}: expected {expected[name]}, got none: it is missing")
            if name not in expected:
                raise SchemaError(f"field {name!r}: expected none, got {got[name]}: the table has {sorted(expected)}")
            if got[name] != expected[name]:
                raise SchemaError(f"field {name!r}: expected {expected[name]} in every row, got {got[name]}")
        if other.row_shape != self.row_shape:
            raise SchemaError(f"batch_size: expected [n, *{list(self.row_shape)}], got [n, *{list(other.row_shape)}]")
        self._check_dim_names(other.dim_names)

    def _check_dim_names(self, names: DimNames) -> None:
        """Checks that no name would be lost. A dimension without a name takes the table's."""
        if any(name is not None and name != own for name, own in itertools.zip_longest(names, self.dim_names)):
            expected = list(self.dim_names) or "none"
            raise SchemaError(f"names of the dimensions: expected {expected}, got {list(names)}; a batch without names is taken")


def check_dim_names(names: Any, dimensions: int) -> DimNames:
    """`names` as the names of that many dimensions; () if none has a name.

    Raises:
        CodecError: they cannot be.
    """
    given = list(names) if isinstance(names, list | tuple) else [names]
    texts = [name for name in given if name is not None]
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() for name in texts):
        raise CodecError(f"names of the dimensions ({str(names)[:100]!r}): each must be printable, and 1 to {MAX_NAME_LENGTH} characters long")
    if texts and (len(given) != dimensions or len(set(texts)) < len(texts)):
        raise CodecError(f"names of the dimensions ({str(names)[:100]!r}): there must be {dimensions} of them, all different")
    return tuple(given) if texts else ()


def _shape(entries: Any) -> tuple[int, ...]:
    return tuple(check_whole(entry, "a dimension", 0, 1 << 48) for entry in entries)


def _check_storable(field: Field, siblings: Container[str]) -> None:
    parts = field.name.split(".")
    if not all(parts) or any(".".join(parts[:n]) in siblings for n in range(1, len(parts))):
        raise SchemaError(f"field {field.name!r}: the keys that '.' joins must not be empty, and none may be a field itself")
    if not field.name.isprintable() or len(field.name) > MAX_NAME_LENGTH:
        raise SchemaError(f"field {field.name[:80]!r}: a name must be printable and at most {MAX_NAME_LENGTH} characters long")
    system = next((system for system in SYSTEM_FIELDS if system.name == parts[0]), None)
    if system is not None:
        shown = f"{DTYPE_NAMES.get(field.dtype, field.dtype)}{list(field.shape)}"
        raise SchemaError(f"field {field.name!r} is reserved: sampled batches have one, {system}, which is left out; this one is {shown}")
    if field.name == METADATA:
        raise SchemaError(f"field {field.name!r} is reserved: in a block's header it stands for no field")
    if field.dtype not in DTYPE_NAMES:
        raise CodecError(f"field {field.name!r}: dtype {field.dtype} cannot be stored; it must be one of {sorted(DTYPES)}")
    if len(field.shape) + 1 > MAX_RANK:
        raise CodecError(f"field {field.name!r}: {len(field.shape)} dimensions a row, at most {MAX_RANK - 1} can be stored")


@lru_cache(maxsize=256)
def _schema_of(columns: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...], row_shape: tuple[int, ...], dim_names: DimNames) -> Schema:
    """Made once for each kind of rows that is in use, because actors send the same kind again and again."""
    return Schema.made_of((Field(name, dtype, tuple(shape)) for name, dtype, shape in columns), row_shape, dim_names)
