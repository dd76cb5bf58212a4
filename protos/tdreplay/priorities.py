"""Priorities of rows: what may be one, and what is drawn by them becomes in a loss."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_BATCH_SIZE, check_number, check_whole
from tdreplay.samplers import Prioritized, Sampler
from tdreplay.system_fields import MIN_PROBABILITY, PROBABILITY, ROW_ID, SEQUENCE_NAMES, TABLE_SIZE

__all__ = [
    "MAX_WEIGHT",
    "Updated",
    "check_weights",
    "checked_priorities",
    "checked_row_ids",
    "importance_weights",
    "row_ids_of",
    "sequence_priorities",
    "weights_of",
]

MAX_WEIGHT = 2.0**960
"""The largest weight of a row: so the sum of the weights of any number of rows is a float64."""
SMALLEST = float(np.nextafter(0, 1))


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


def weights_of(priorities: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """The weights of rows: their priorities to the power `alpha`, float64 of shape [n]. That of a priority above 0 is above 0.

    Raises:
        InvalidArgumentError: one of them is above `MAX_WEIGHT`.
    """
    with np.errstate(over="ignore", under="ignore"):
        weights: npt.NDArray[np.float64] = np.maximum(np.power(priorities, alpha), SMALLEST)
    weights[priorities == 0] = 0.0
    if weights.max(initial=0.0) > MAX_WEIGHT:
        worst = priorities[weights > MAX_WEIGHT][0]
        raise InvalidArgumentError(f"priority ({worst}) to the power of alpha ({alpha:g}) must be at most {MAX_WEIGHT:g}")
    return weights


def check_weights(priorities: npt.NDArray[np.float64] | None, sampler: Sampler) -> None:
    """Passes where rows of a table with this sampler may have these priorities; None: they have none.

    Raises:
        InvalidArgumentError: as `weights_of`.
    """
    if priorities is not None and isinstance(sampler, Prioritized):
        weights_of(priorities, sampler.alpha)


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


def row_ids_of(batch: TensorDictBase) -> npt.NDArray[np.int64]:
    """The row ids of a batch, int64 of shape [n]: one for each row, also where the rows are themselves batches.

    Raises:
        InvalidArgumentError: the batch has no field ``row_id``.
    """
    row_ids = _field(batch, ROW_ID.name, "to say which rows these are")
    return checked_row_ids(row_ids.flatten(1)[:, 0] if row_ids.dim() > 1 else row_ids)


def importance_weights(batch: TensorDictBase, beta: float, normalize: Literal["batch", "table"] | None = "batch") -> torch.Tensor:
    """The weights that correct a loss for the probabilities with which its rows were drawn: ``(table_size * probability) ** -beta``.

    Schaul et al., Prioritized Experience Replay, ICLR 2016, section 3.4.

    Args:
        batch: A random batch. One of a table without priorities has no ``probability``: all of its weights are 1.
        beta: How much is corrected, from 0 (nothing) up; 1 is all of it.
        normalize: What the weights are divided by, so that none is above 1: the largest weight in the batch, or the largest that a row of the table
            could have. None: nothing. The weights of different batches compare with each other only by "table" and None.

    Returns:
        float32, of the shape of ``probability``, which is that of the batch, on its device. For a batch of `Sequences`, [n, T], it is [n]: one for
        each sequence.

    Raises:
        InvalidArgumentError: beta is negative or not finite, normalize is none of these, or the batch lacks a field that this needs.
    """
    power = -check_number(beta, "beta", 0)
    if normalize not in ("batch", "table", None):
        raise InvalidArgumentError(f"normalize ({normalize!r}) must be batch, table or None")
    if PROBABILITY.name not in batch.keys():  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        row_ids = _field(batch, ROW_ID.name, "which random batches of every table have")
        return torch.ones(_one_each(batch, row_ids).shape, dtype=torch.float32, device=row_ids.device)
    size = _one_each(batch, _field(batch, TABLE_SIZE.name, "to weigh its rows"))
    weights = (size * _one_each(batch, _field(batch, PROBABILITY.name, ""))) ** power
    if normalize == "batch":
        weights = weights / weights.amax() if weights.numel() else weights
    elif normalize == "table":
        least = _one_each(batch, _field(batch, MIN_PROBABILITY.name, 'for normalize="table"'))
        weights = weights / (size * least) ** power
    return weights.to(torch.float32)


def sequence_priorities(td_error: torch.Tensor, mask: torch.Tensor, eta: float = 0.9) -> torch.Tensor:
    """The priorities of sequences: ``eta`` times the largest error of a sequence, and ``1 - eta`` times their mean.

    Kapturowski et al., Recurrent Experience Replay in Distributed Reinforcement Learning (R2D2), ICLR 2019, section 2.3.

    Args:
        td_error: The errors of all steps, positive or negative, of shape [n, T].
        mask: Which of them count, bool of shape [n, T]: those that are trained. For a batch of `Sequences` it is
            ``batch["mask"] & ~batch["burn_in"]``. The others may be anything, also NaN.
        eta: How much of the largest error, from 0 to 1.

    Returns:
        [n] on the device of `td_error`, which is what `update_priorities` takes: float64 where the errors are, else float32. A sequence of which no
        step counts has 0.

    Raises:
        InvalidArgumentError: the shapes are not [n, T], or differ, or T is 0; the mask is not of bools; or eta is out of its range.
    """
    share = check_number(eta, "eta", 0, 1)
    if td_error.dim() != 2 or not td_error.shape[1] or td_error.shape != mask.shape or mask.dtype is not torch.bool:
        given = f"td_error of shape {list(td_error.shape)} and mask of shape {list(mask.shape)} and dtype {mask.dtype}"
        raise InvalidArgumentError(f"{given} must both be of shape [n, T], and the mask of bools")
    errors = td_error.detach().abs()
    counted = errors.to(torch.promote_types(errors.dtype, torch.float32)).masked_fill(~mask, 0)
    return torch.lerp(counted.sum(1) / mask.sum(1).clamp(min=1), counted.amax(1), share)


def _one_each(batch: TensorDictBase, value: torch.Tensor) -> torch.Tensor:
    """What is known of each drawn row. A batch of sequences has it at every step of one, because a TensorDict has no other place for it."""
    return value[:, 0] if value.dim() == 2 and set(batch.keys()) >= SEQUENCE_NAMES else value


def _field(batch: TensorDictBase, name: str, why: str) -> torch.Tensor:
    value = batch.get(name, None)
    if not isinstance(value, torch.Tensor):
        raise InvalidArgumentError(f"the batch has no field {name!r}, {why}: it has {sorted(map(str, batch.keys()))}")
    return value


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(_of_numpy(values) if isinstance(values, torch.Tensor) else values)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidArgumentError(f"{name} must be numbers: {str(error)[:100]}") from None


def _of_numpy(values: torch.Tensor) -> torch.Tensor:
    """The same numbers on the CPU, in a dtype that NumPy has: bfloat16, which errors have under autocast, is none."""
    found = values.detach().cpu()
    return found.float() if found.is_floating_point() and found.itemsize < 4 else found
