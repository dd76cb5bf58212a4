"""Batches that are put together of the draws of several shards, several at once where they are small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import RowIdError, SchemaError
from tdreplay.memory import Rows, as_rows
from tdreplay.schema import Columns
from tdreplay.shard_ids import SHARD_ROW_BITS
from tdreplay.system_fields import INDEX, MIN_PROBABILITY, PROBABILITY, ROW_ID, TABLE_SIZE
from tdreplay_client.sharding.shard_batches import ShardBatch, id_fields
from tdreplay_client.sharding.supply import Pull, Run

__all__ = ["Given", "Places", "drawn_places", "mixed"]

FEW_SHARDS = 8
"""Up to so many, looking for the rows of each one is faster than sorting."""
Places = npt.NDArray[np.intp]
Memory: TypeAlias = "Callable[[tuple[int, ...], torch.dtype], torch.Tensor]"
"""Makes the memory of a column of this shape and dtype."""


class Given(NamedTuple):
    """What one shard gives to some batches.

    Attributes:
        runs: The rows, in the order in which they were drawn.
        places: Where they go: row number k of the runs, one after the other, becomes row ``places[k]`` of the batches.
        number: Of the shard in its cluster.
        place: Of the shard among those of the buffer.
        share: How probable it was that a row came from this shard.
    """

    runs: Sequence[Run]
    places: Places
    number: int
    place: int
    share: float


def drawn_places(masses: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> list[Places]:
    """Of each shard, which rows of some batches it gives, ascending.

    Each row is drawn from a shard on its own. So the number of a shard's rows in a batch is multinomial, and shards come in random order.

    Args:
        masses: Of the shards, of shape [shards]; all above 0.
        uniform: A random number from 0 to 1 for each row.
    """
    bounds = np.cumsum(masses)
    wanted, bounds = uniform * bounds[-1], bounds[:-1]
    if len(masses) <= FEW_SHARDS:
        chosen = np.zeros(len(uniform), np.uint8)
        for bound in bounds:
            chosen += wanted >= bound
        return [np.flatnonzero(chosen == place) for place in range(len(masses))]
    found = np.searchsorted(bounds, wanted, side="right")
    order = np.argsort(found.astype(np.uint16), kind="stable")
    return np.split(order, np.cumsum(np.bincount(found, minlength=len(masses)))[:-1])


def mixed(given: Sequence[Given], batches: int, shards: int, memory: Memory, size: int, min_probability: float) -> Columns:
    """The columns of so many batches, one after the other, with the ids and the slots of the whole buffer.

    They lie in new memory. A single batch that is all that one shard sent at once is taken over: it is not copied.

    Args:
        given: What each shard gives: at least one row.
        batches: How many.
        shards: How many shards the buffer has: a slot depends on it.
        memory: Makes it.
        size: The number of rows of all shards among which were drawn, for batches that say it.
        min_probability: The smallest probability of any of them; the same.

    Raises:
        SchemaError: the shards have rows of other fields.
        RowIdError: a shard gave an id that has no room.
    """
    rows = sum(len(one.places) for one in given)
    first = next(one.runs[0].pull for one in given if one.runs)
    kinds = {name: column for name, column in first.batch.columns.items() if name not in first.of_draw}
    if batches == len(given) == len(given[0].runs) == 1 and first.rows == rows:
        whole = _taken_over(kinds, first, given[0], shards)
    else:
        whole = _copied(kinds, first, given, rows, shards, memory)
    said: dict[str, Any] = {TABLE_SIZE.name: size, MIN_PROBABILITY.name: min_probability}
    whole |= {
        name: torch.full((rows,), value, dtype=first.batch.columns[name].dtype, device="cpu") for name, value in said.items() if first.is_weighed
    }
    return whole


def _taken_over(kinds: Columns, pull: Pull, one: Given, shards: int) -> dict[str, torch.Tensor]:
    """The columns of a pull, of which only those are new that the whole buffer has otherwise."""
    found = dict(kinds)
    for name, change in _changes(pull).items():
        if name in kinds:
            values = kinds[name].numpy()
            found[name] = torch.from_numpy(change(values, one, shards).view(values.dtype).reshape(values.shape))
    return found


def _copied(kinds: Columns, first: Pull, given: Sequence[Given], rows: int, shards: int, memory: Memory) -> dict[str, torch.Tensor]:
    """The rows of all runs in other memory, each at its place."""
    whole = {name: memory((rows, *column.shape[1:]), column.dtype) for name, column in kinds.items()}
    targets = {name: as_rows(column) for name, column in whole.items() if column.nbytes}
    for one in given:
        start = 0
        for run in one.runs:
            stop = start + run.stop - run.start
            _check_same(first.batch, run.pull.batch, one.number)
            _put(targets, run, one.places if len(one.places) == stop - start else one.places[start:stop], one, shards)
            start = stop
    return whole


def _put(targets: dict[str, Rows], run: Run, places: Places, one: Given, shards: int) -> None:
    """Copies the rows of a run to their places."""
    columns, start, stop = run.pull.columns, run.start, run.stop
    changes = _changes(run.pull)
    for name, target in targets.items():
        values = columns[name][start:stop]
        change = changes.get(name)
        target[places] = values if change is None else change(run.pull.batch.columns[name][start:stop].numpy(), one, shards)


def _changes(pull: Pull) -> Mapping[str, Callable[[Any, Given, int], Rows]]:
    changes = _OF_WHOLE if pull.is_weighed else _OF_ROWS
    ids = id_fields(pull.batch.columns)
    return changes | {name: changes[field] for name, field in ids.items()} if ids else changes


def _row_ids(values: Any, one: Given, _shards: int) -> Rows:
    """In windows -1 stands for a step that is not there."""
    if not one.number:
        return _rows(values)
    if int(values.max()) >> SHARD_ROW_BITS:
        raise RowIdError(f"shard {one.number} gave more row ids than fit: 2^{SHARD_ROW_BITS}")
    found = values + (one.number << SHARD_ROW_BITS)
    return _rows(found if values.ndim == 1 else np.where(values < 0, values, found))


def _slots(values: Any, one: Given, shards: int) -> Rows:
    found = values * shards + one.place
    return _rows(found if values.ndim == 1 else np.where(values < 0, values, found))


def _probabilities(values: Any, one: Given, _shards: int) -> Rows:
    return _rows(values * one.share)


def _rows(values: Any) -> Rows:
    """The same as rows of bytes."""
    found: Rows = np.ndarray(len(values), np.dtype((np.void, values.nbytes // len(values))), values)
    return found


_OF_ROWS = {ROW_ID.name: _row_ids, INDEX.name: _slots}
_OF_WHOLE = _OF_ROWS | {PROBABILITY.name: _probabilities}
"""Fields whose values in the whole buffer are others than in its shard -> what makes them; the last of them, of draws by priorities alone."""


def _check_same(first: ShardBatch, other: ShardBatch, number: int) -> None:
    if first is other:
        return
    mine, theirs = first.columns, other.columns
    same = mine.keys() == theirs.keys() and all(
        column.dtype == theirs[name].dtype and column.shape[1:] == theirs[name].shape[1:] for name, column in mine.items()
    )
    if not same:
        raise SchemaError(f"the shards are no one buffer: rows of shard {number} have other fields than those of another shard")
