"""Rows that are on their way over shards: parts of them, and what an error hands back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.rows import Given, given_rows
from tdreplay.schema import Schema
from tdreplay.system_fields import PRIORITY

__all__ = ["bytes_of", "joined_rows", "rows_between", "tensordict_of", "with_priorities"]


def bytes_of(given: Given) -> int:
    """The bytes of the rows, as far as their values say it."""
    return sum(getattr(value, "nbytes", 0) for value in given.values.values())


def rows_between(given: Given, start: int, stop: int) -> Given:
    """Some of the rows of columns."""
    stop = min(stop, given.number)
    values = {name: column[start:stop] for name, column in given.values.items()}
    priorities = None if given.priorities is None else given.priorities[start:stop]
    return given._replace(values=values, rows=max(0, stop - start), priorities=priorities)


def tensordict_of(given: Given) -> TensorDict:
    """A copy of the rows. Where they have priorities, these are one of the fields."""
    columns: dict[str, Any] = {name: column.clone() for name, column in given.columns(None, cast=False).items()}
    if given.priorities is not None:
        columns[PRIORITY.name] = torch.from_numpy(np.array(given.priorities))
    return to_tensordict(columns, (given.number, *given.row_shape), torch.device("cpu"), given.dim_names)


def joined_rows(pieces: Sequence[TensorDict]) -> TensorDict:
    """All rows; where some have the field ``priority``, the others have NaN there."""
    filled = list(pieces)
    if any(PRIORITY.name in piece.keys() for piece in filled):  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        for piece in filled:
            if PRIORITY.name not in piece.keys():  # noqa: SIM118
                piece.set(PRIORITY.name, torch.full(piece.batch_size, torch.nan, dtype=PRIORITY.dtype))
    return torch.cat(filled)


def with_priorities(rows: Any, schema: Schema | None) -> Iterator[Given]:
    """Rows that an error hands back, with the priorities that they have: those that have none, and those that have some, in turn."""
    given = given_rows(rows)
    if PRIORITY.name not in given.values or (schema is not None and PRIORITY.name in schema.fields_by_name):
        yield given
        return
    values = {name: value for name, value in given.values.items() if name != PRIORITY.name}
    priorities = given.values[PRIORITY.name].reshape(given.number, -1)[:, 0].contiguous().numpy()
    without = np.isnan(priorities)
    stops = [*(np.flatnonzero(np.diff(without)) + 1).tolist(), given.number]
    for start, stop in zip([0, *stops], stops, strict=False):
        yield rows_between(given._replace(values=values, priorities=None if without[start] else priorities), start, stop)
