"""TensorDict <-> columns: flat field names, one tensor each, on their way to and from storage and wire."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_non_tensor, is_tensor_collection

from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.schema import INDEX, ROW_ID, Columns

__all__ = ["from_row", "from_rows", "to_tensordict"]


def from_row(row: TensorDictBase) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """One row as columns of length 1, views where possible, and its row shape (its batch size).

    Raises:
        CodecError: it is not a TensorDict, or a field cannot travel; the message names it.
    """
    columns = _leaves(row)
    return {name: leaf.unsqueeze(0) for name, leaf in columns.items()}, tuple(row.batch_size)


def from_rows(batch: TensorDictBase) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """A batch of rows as columns, views where possible, and the row shape (its batch size after the first dimension).

    Raises:
        CodecError: it is not a TensorDict, or a field cannot travel; the message names it.
        InvalidArgumentError: it has no batch dimension, or no row.
    """
    columns = _leaves(batch)
    if not batch.batch_size:
        raise InvalidArgumentError("batch_size ([]) must be [n, ...]: add_batch takes n rows; for one row use add")
    if batch.batch_size[0] == 0:
        raise InvalidArgumentError(f"batch_size ({list(batch.batch_size)}): the batch is empty, it must hold at least one row")
    return columns, tuple(batch.batch_size[1:])


def to_tensordict(columns: Columns, batch_size: tuple[int, ...], device: torch.device) -> TensorDict:
    """The TensorDict with these columns, names with '.' nested again; it takes the tensors over, without a copy.

    Where rows are batches themselves, ``index`` and ``row_id`` are expanded to the whole batch size, as TorchRL does.
    """
    nested: dict[str, Any] = {}
    for name, column in columns.items():
        *parents, leaf = name.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = column if name not in (INDEX, ROW_ID) or len(batch_size) == 1 else _expanded(column, batch_size)
    return _build(nested, torch.Size(batch_size), device)


def _expanded(column: torch.Tensor, batch_size: tuple[int, ...]) -> torch.Tensor:
    return column.view(-1, *[1] * (len(batch_size) - 1)).expand(batch_size)


def _build(nested: dict[str, Any], batch_size: torch.Size, device: torch.device) -> TensorDict:
    source = {name: _build(value, batch_size, device) if isinstance(value, dict) else value for name, value in nested.items()}
    return TensorDict(source, batch_size=batch_size, device=device)


def _leaves(data: TensorDictBase) -> dict[str, torch.Tensor]:
    if not is_tensor_collection(data) or is_non_tensor(data):
        raise CodecError(f"data ({type(data).__name__}) must be a TensorDict")
    leaves: dict[str, torch.Tensor] = {}
    _collect(data, "", leaves)
    return leaves


def _collect(data: TensorDictBase, prefix: str, leaves: dict[str, torch.Tensor]) -> None:
    for key in list(data.keys()):  # A TensorDict iterates over its rows, not its keys.
        name = f"{prefix}{key}"
        if not key or "." in key:
            raise CodecError(f"field {name!r}: a key must not be empty and must not contain '.', which joins nested keys")
        value = _value(data, key, name)
        if is_tensor_collection(value) and not is_non_tensor(value):
            _collect(value, f"{name}.", leaves)
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_nested:
            leaves[name] = value.detach()
        else:
            raise CodecError(f"field {name!r}: {type(value).__name__} cannot travel; it must be a dense tensor")


def _value(data: TensorDictBase, key: str, name: str) -> Any:
    try:
        return data.get(key)
    except RuntimeError as error:  # A lazy stack of rows whose shapes differ.
        raise CodecError(f"field {name!r}: the rows differ in shape, so they cannot be stored as one field") from error
