"""The index and the fields that a user asks for, as slots and names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.errors import FieldNotFoundError, InvalidArgumentError, SlotIndexError
from tdreplay.field_names import field_name
from tdreplay.limits import MAX_BATCH_SIZE, check_whole, shown
from tdreplay.state import State

__all__ = ["At", "Fields", "Index", "Slots", "as_fields", "as_slots", "in_slot_order", "shaped"]

Index: TypeAlias = "SupportsIndex | slice | Sequence[Any] | torch.Tensor | npt.NDArray[Any]"
"""Slots: a number, or a list, range, NumPy array or tensor of numbers, of any shape. Or a slice or a mask of the stored rows."""

Fields: TypeAlias = "str | Iterable[str | tuple[str, ...]]"
"""Names of fields. Nested keys are joined with '.', or are a tuple. The name of a parent stands for all fields below it."""

Slots = npt.NDArray[np.int64]
"""Slots, or positions among the stored rows: shape [n]."""

At: TypeAlias = "Callable[[Slots, State], Slots]"
"""Positions among the stored rows in slot order, and the state to which they refer -> their slots."""

INT64 = np.iinfo(np.int64)


def as_slots(index: Index, state: Callable[[], State], at: At | None = None) -> tuple[Slots, tuple[int, ...]]:
    """The slots that `index` names, flat, and the shape of `index`.

    `state` is called only if the index refers to the stored rows: if it is a slice or a mask, or has a negative number. `at` then says which slots
    these rows lie in; None: those of a ring.

    Raises:
        SlotIndexError: a number is beyond all slots, or below minus the number of stored rows; the message names it.
        InvalidArgumentError: the index names no slot or more than `MAX_BATCH_SIZE`, or is not an `Index`.
    """
    slots_at = _in_ring if at is None else at
    if isinstance(index, slice):
        stored = state()
        slots = slots_at(_sliced(index, stored), stored)
        return slots, slots.shape
    values = _of_range(index) if isinstance(index, range) else _array(index)
    if values.dtype == np.bool_:
        stored = state()
        slots = slots_at(_masked(values, stored), stored)
        return slots, slots.shape
    _check_count(values.size)
    numbers = _whole(values, index)
    return (numbers if numbers.min() >= 0 else _counted_from_the_end(numbers, state(), slots_at)), values.shape


def as_fields(fields: Fields | None) -> tuple[str, ...] | None:
    """The names of fields as a request has them. None, which stands for all fields, stays None.

    Raises:
        FieldNotFoundError: there is no name.
        InvalidArgumentError: something in `fields` is not a name.
    """
    if fields is None:
        return None
    try:
        names = (fields,) if isinstance(fields, str) else tuple(map(field_name, fields))
    except TypeError:
        raise InvalidArgumentError(f"fields ({shown(fields)}) must be names, or tuples of them") from None
    if not names:
        raise FieldNotFoundError(f"fields ({shown(fields)}) must name at least one field, and each one once; None stands for all of them")
    return names


def in_slot_order(positions: Slots, buffer_size: int, oldest: int, size: int) -> Slots:
    """The slots at `positions` of the live slots in ascending order. The ring's live row ids are ``[oldest, oldest + size)``."""
    start = oldest % buffer_size
    low = max(0, start + size - buffer_size)  # The number of live slots below `start`: the ring wraps.
    return positions if start == low else np.where(positions < low, positions, positions + (start - low))


def shaped(batch: TensorDict, shape: tuple[int, ...]) -> TensorDict:
    """`batch`, whose first dimension of n rows becomes the dimensions `shape`."""
    if len(shape) == 1:
        return batch
    found: TensorDict = batch.view(*shape, *batch.batch_size[1:]) if shape else batch[0]
    return found


def _sliced(index: slice, state: State) -> Slots:
    """Positions among the stored rows."""
    try:
        chosen = range(*index.indices(state.size))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"index ({shown(index)}): {error}") from None
    _check_count(len(chosen))
    return np.arange(chosen.start, chosen.stop, chosen.step, dtype=np.int64)


def _masked(mask: npt.NDArray[np.bool_], state: State) -> Slots:
    """The same."""
    if mask.shape != (state.size,):
        raise InvalidArgumentError(
            f"index (a mask of shape {list(mask.shape)}) must have shape [{state.size}], a boolean for each stored row; else it must be whole numbers"
        )
    positions = np.flatnonzero(mask)
    _check_count(len(positions))
    return positions


def _counted_from_the_end(numbers: Slots, state: State, at: At) -> Slots:
    """The slots that `numbers` name. Some are negative: -1 is the last stored row in slot order."""
    if numbers.min() < -state.size:
        raise _no_row(int(numbers[numbers < -state.size][0]), state)
    return np.where(numbers < 0, at(np.where(numbers < 0, numbers + state.size, 0), state), numbers)


def _in_ring(positions: Slots, state: State) -> Slots:
    return in_slot_order(positions, state.buffer_size, state.write_count - state.size, state.size)


def _no_row(number: int, state: State) -> SlotIndexError:
    return SlotIndexError(f"index {number} holds no row: the buffer has {state.size} rows in its {state.buffer_size} slots")


def _check_count(count: int) -> None:
    check_whole(count, "the number of slots in index", 1, MAX_BATCH_SIZE)


def _array(index: Any) -> npt.NDArray[Any]:
    try:
        return index.detach().cpu().numpy() if isinstance(index, torch.Tensor) else np.asarray(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(f"index ({shown(index)}) must be whole numbers, a slice or a mask: {error}") from None


def _of_range(index: range) -> npt.NDArray[Any]:
    count = max(0, -(-(index.stop - index.start) // index.step))  # len() fails above 63 bits.
    _check_count(count)
    ends = [index[0], index[count - 1]]
    return np.arange(index.start, index.stop, index.step) if _fits(*ends) else np.array(ends, dtype=object)


def _fits(*numbers: int) -> bool:
    return all(INT64.min <= number <= INT64.max for number in numbers)


def _whole(values: npt.NDArray[Any], index: object) -> Slots:
    """Whole numbers, flat, as int64.

    Raises:
        SlotIndexError: a number is beyond int64, and so beyond all slots.
        InvalidArgumentError: one is not a whole number.
    """
    if values.dtype.kind in "iu" and values.dtype != np.uint64:
        return values.reshape(-1).astype(np.int64, copy=False)
    try:  # NumPy makes floats or objects of numbers of several types, and of numbers beyond 64 bits.
        given = np.array(index, dtype=object) if isinstance(index, (list, tuple)) else values.astype(object)
        numbers = [operator.index(number) for number in given.reshape(-1)]
    except (TypeError, ValueError, RuntimeError):
        kind = f"{values.dtype} of shape {list(values.shape)}"
        raise InvalidArgumentError(f"index ({shown(index)}, {kind}) must be whole numbers, a slice or a mask") from None
    beyond = next((number for number in numbers if not _fits(number)), None)
    if beyond is not None:
        raise SlotIndexError(f"index {shown(beyond)} holds no row: it is beyond all slots")
    return np.array(numbers, np.int64)
