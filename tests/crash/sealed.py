"""Rows that tell whether they are whole: a number, a payload that follows from it, and a checksum over both."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict

from tdreplay.columns import from_rows
from tdreplay.schema import Schema
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.tables.table import Table

FACTOR = np.int64(0x2545F4914F6CDD1D)


def sealed(first: int, rows: int, words: int = 16) -> TensorDict:
    """The rows of the numbers from `first` on, with a payload of so many words of 8 bytes."""
    number = np.arange(first, first + rows)
    payload = _payload(number, words)
    fields = {"number": number, "payload": payload, "sum": payload.sum(axis=1) ^ number}
    return TensorDict({name: torch.from_numpy(field) for name, field in fields.items()}, [rows])


def _payload(number: np.ndarray, words: int) -> np.ndarray:
    return (number[:, None] + 1) * FACTOR + np.arange(words)


def numbers(batch: TensorDict) -> np.ndarray:
    """The rows' numbers, after checking that each row is whole."""
    number, payload, total = (batch[name].numpy() for name in ("number", "payload", "sum"))
    assert np.array_equal(payload.sum(axis=1) ^ number, total), "a row is torn"
    assert np.array_equal(payload, _payload(number, payload.shape[1])), "a row is not what was written"
    return number


def window(batch: TensorDict) -> range:
    """The row ids of a batch, after checking that each row is whole, that the ids are consecutive, and that a row's number is its id."""
    number, row_id = numbers(batch), np.sort(batch["row_id"].numpy())
    assert np.array_equal(number, batch["row_id"].numpy()), "a row has another's id"
    assert np.array_equal(row_id, np.arange(row_id[0], row_id[0] + len(row_id))), "the ids have a gap, or one comes twice"
    return range(int(row_id[0]), int(row_id[-1]) + 1)


def insert(table: Table, batch: TensorDict, writer: str = "", sequence: int = 0) -> int:
    """Stores a batch, as the block of that number of a writer, and gives its first row's id."""
    columns, row_shape = from_rows(batch)
    first, _ = table.insert(columns, Schema.of(columns, row_shape), len(batch), InsertKey.of(writer, sequence, columns))
    return first


def insert_with(table: Table, batch: TensorDict, priorities: np.ndarray) -> int:
    """Stores a batch whose rows have these priorities, and gives its first row's id."""
    columns, row_shape = from_rows(batch)
    first, _ = table.insert(columns, Schema.of(columns, row_shape), len(batch), priorities=priorities)
    return first
