"""TensorDicts to columns and back. Columns have flat field names and one tensor each, as storage and wire have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase, is_non_tensor, is_tensor_collection

from tdreplay.errors import CodecError, InvalidArgumentError, SchemaError
from tdreplay.schema import Columns, DimNames
from tdreplay.system_fields import DRAWN_NAMES, MIN_PROBABILITY, SYSTEM_FIELDS, SYSTEM_NAMES, TABLE_SIZE, SystemField
from tdreplay.values import NUMPY, dense

__all__ = ["collect", "drawn_columns", "from_rows", "leaves", "to_tensordict", "without_system_fields"]


def leaves(data: TensorDictBase) -> dict[str, torch.Tensor]:
    """The tensors of a TensorDict: nested keys joined with '.' -> tensor. System fields are left out.

    Raises:
        CodecError: it is not a TensorDict, or a field cannot travel; the message names the field.
        SchemaError: the TensorDict has something that its tensors alone would not bring back; the message says what.
    """
    if not is_tensor_collection(data) or is_non_tensor(data):
        raise CodecError(f"data ({type(data).__name__}) must be a TensorDict, or a dict")
    found: dict[str, torch.Tensor] = {}
    collect(data, "", found)
    return without_system_fields(found, tuple(data.batch_size))


def without_system_fields(values: dict[str, Any], batch_size: tuple[int, ...]) -> dict[str, Any]:
    """`values` without the system fields of a sampled batch. It is changed in place.

    A value of that name with another dtype or shape stays, so that the schema refuses it.
    """
    for field in SYSTEM_FIELDS:
        if field.name in values and _is_sampled(values[field.name], field, batch_size):
            del values[field.name]
    return values


def _is_sampled(value: Any, field: SystemField, batch_size: tuple[int, ...]) -> bool:
    array = value if isinstance(value, torch.Tensor) else np.asarray(value)
    shapes = ((*batch_size, *field.shape), (*batch_size[:1], *field.shape))
    return array.dtype in (field.dtype, NUMPY[field.dtype]) and tuple(array.shape) in shapes


def from_rows(batch: TensorDictBase) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """A batch of rows as columns, views where possible, and the row shape: its batch size after the first dimension.

    Raises:
        CodecError, SchemaError: as `leaves`.
        InvalidArgumentError: it has no batch dimension, or no row.
    """
    columns = leaves(batch)
    if not batch.batch_size:
        raise InvalidArgumentError("batch_size ([]) must be [n, ...]: add_batch takes n rows; for one row use add")
    if batch.batch_size[0] == 0:
        raise InvalidArgumentError(f"batch_size ({list(batch.batch_size)}): the batch is empty, it must hold at least one row")
    return columns, tuple(batch.batch_size[1:])


def to_tensordict(columns: Columns, batch_size: tuple[int, ...], device: torch.device, dim_names: DimNames = ()) -> TensorDict:
    """The TensorDict with these columns; names with '.' become nested keys. It takes over the tensors, without a copy.

    If rows are themselves batches, system fields are expanded to the whole batch size, as TorchRL does.
    """
    nested: dict[str, Any] = {}
    for name, column in columns.items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _expanded(column, batch_size) if len(batch_size) > 1 and _is_one_a_row(name, column) else column
    made = _build(nested, torch.Size(batch_size), device)
    if dim_names:
        made.names = list(dim_names)
    return made


def drawn_columns(rows: int, size: int, min_probability: float) -> dict[str, torch.Tensor]:
    """What a batch of so many rows says of its draw, the same in all rows: tensors of shape [rows] with one value in memory."""
    return {
        TABLE_SIZE.name: torch.tensor(size, dtype=TABLE_SIZE.dtype).expand(rows),
        MIN_PROBABILITY.name: torch.tensor(min_probability, dtype=MIN_PROBABILITY.dtype).expand(rows),
    }


def _is_one_a_row(name: str, column: torch.Tensor) -> bool:
    """Whether the column has one value for each row, where the rows are themselves batches. A user's field of that name has more."""
    return name in SYSTEM_NAMES or (name in DRAWN_NAMES and column.dim() == 1)


def _expanded(column: torch.Tensor, batch_size: tuple[int, ...]) -> torch.Tensor:
    value = column.shape[1:]
    return column.view(-1, *[1] * (len(batch_size) - 1), *value).expand(*batch_size, *value)


def _build(nested: dict[str, Any], batch_size: torch.Size, device: torch.device) -> TensorDict:
    source = {name: _build(value, batch_size, device) if isinstance(value, dict) else value for name, value in nested.items()}
    return TensorDict(source, batch_size=batch_size, device=device)


def collect(data: TensorDictBase, prefix: str, found: dict[str, torch.Tensor]) -> None:
    """Adds the tensors of a TensorDict to `found`: `prefix` and the nested keys, joined with '.' -> tensor.

    Raises:
        CodecError: a field cannot travel; the message names it.
        SchemaError: as `leaves`.
    """
    for key, value in _items(data, prefix):
        name = f"{prefix}{key}"
        if not key or "." in key:
            raise CodecError(f"field {name!r}: a key must not be empty and must not contain '.', which joins nested keys")
        if isinstance(value, torch.Tensor):
            found[name] = dense(name, value)
        elif is_tensor_collection(value) and not is_non_tensor(value):
            _collect_nested(value, name, data, found)
        else:
            raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel; it must be a dense tensor")


def _collect_nested(data: TensorDictBase, name: str, around: TensorDictBase, found: dict[str, torch.Tensor]) -> None:
    if data.batch_size != around.batch_size:
        raise SchemaError(
            f"field {name!r}: its batch_size ({list(data.batch_size)}) must be {list(around.batch_size)}, as around it: another one would be lost"
        )
    if data.names != around.names and any(name not in (None, outer) for name, outer in zip(data.names, around.names, strict=True)):
        raise SchemaError(f"field {name!r}: the names of its dimensions ({data.names}) must be {around.names}, as around it: others would be lost")
    before = len(found)
    collect(data, f"{name}.", found)
    if len(found) == before:
        raise SchemaError(f"field {name!r}: an empty TensorDict cannot be stored: there is no tensor that would bring it back")


def _items(data: TensorDictBase, prefix: str) -> Iterable[tuple[str, Any]]:
    return _stacked(data, prefix) if isinstance(data, LazyStackedTensorDict) else data.items()


def _stacked(data: LazyStackedTensorDict, prefix: str) -> Iterator[tuple[str, Any]]:
    """The items of a lazy stack. Its rows must have the same keys, dtypes and shapes."""
    parts = data.tensordicts
    common, every = (combine(*(set(part.keys()) for part in parts)) for combine in (set.intersection, set.union))
    if common != every:
        raise SchemaError(f"fields {sorted(prefix + key for key in every - common)}: some rows of the stack have them, and others do not")
    for key in parts[0].keys():  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        kinds = {_kind(part.get(key)) for part in parts}
        if len(kinds) > 1:
            raise SchemaError(f"field {prefix + key!r}: the rows of the stack differ in dtype: {sorted(kinds)}")
        yield key, _value(data, key, prefix + key)


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, torch.Tensor) else "TensorDict"


def _value(data: TensorDictBase, key: str, name: str) -> Any:
    try:
        return data.get(key)
    except RuntimeError as error:  # A lazy stack of rows whose shapes differ.
        raise CodecError(f"field {name!r}: the rows differ in shape, so they cannot be stored as one field") from error
