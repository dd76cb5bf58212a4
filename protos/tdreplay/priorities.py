"""Priorities of rows: what may be one, and what is drawn by them becomes in a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_BATCH_SIZE, check_whole

__all__ = ["Updated", "checked_priorities", "checked_row_ids"]


class Updated(NamedTuple):
    """What became of the rows of an update.

    Attributes:
        updated: How many have the new priority.
        stale: How many were not stored any more. Their slots may hold newer rows, which did not change.
    """

    updated: int
    stale: int


def checked_priorities(priorities: Any, rows: int) -> npt.NDArray[np.float64]:
    """Priorities of so many rows: a tensor, an array, a list, or one number for all of them -> float64 of shape [rows].

    Raises:
        InvalidArgumentError: one is negative, NaN or infinite, or there is another number of them.
    """
    values = _array(priorities, "priorities")
    if values.dtype.kind not in "iuf":
        raise InvalidArgumentError(f"priorities of dtype {values.dtype} must be real numbers")
    found = values.astype(np.float64)
    if found.size != rows and found.ndim:
        raise InvalidArgumentError(f"priorities of shape {list(found.shape)} must be {rows}, one for each row")
    wrong = found[~(np.isfinite(found) & (found >= 0))]
    if wrong.size:
        raise InvalidArgumentError(f"a priority ({wrong[0]:g}) must be a finite number from 0 up")
    return np.broadcast_to(found, rows) if found.ndim == 0 else found.reshape(rows)


def checked_row_ids(row_ids: Any) -> npt.NDArray[np.int64]:
    """Row ids: a tensor, an array or a list of integers -> int64 of shape [n].

    Raises:
        InvalidArgumentError: they are no integers, or more than `MAX_BATCH_SIZE`.
    """
    values = _array(row_ids, "row_ids").reshape(-1)
    if values.size and values.dtype.kind not in "iu":
        raise InvalidArgumentError(f"row_ids of dtype {values.dtype} must be integers")
    check_whole(values.size, "the number of row_ids", 0, MAX_BATCH_SIZE)
    return values.astype(np.int64)


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidArgumentError(f"{name} must be numbers: {str(error)[:100]}") from None
