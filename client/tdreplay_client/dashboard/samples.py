"""Histograms of a table: of a random sample of its rows, and of its newest episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from tdreplay.errors import InvalidArgumentError, SlotIndexError
from tdreplay.fields import Field
from tdreplay.system_fields import PRIORITY, ROW_ID, STEP_KIND, StepKind
from tdreplay.table_description import TableDescription
from tdreplay_client.dashboard.fields import column, has_column, is_scalar, user_fields
from tdreplay_client.dashboard.histograms import histogram
from tdreplay_client.dashboard.limits import HISTOGRAMS, SAMPLE_ROWS
from tdreplay_client.dashboard.tables import ATTEMPTS, RowReader, row_ids

__all__ = ["sampled_histograms"]

Array = npt.NDArray[Any]


def sampled_histograms(reader: RowReader, name: str, most: int) -> dict[str, Any]:
    """Histograms of the scalar fields, the priorities and the ages of at most `most` rows, drawn at random without replacement.

    An age is how many rows came after a row. Final observations are left out: they are no steps, and have no reward.

    Raises:
        InvalidArgumentError: `most` is below 1 or above `SAMPLE_ROWS`.
    """
    if not 1 <= most <= SAMPLE_ROWS:
        raise InvalidArgumentError(f"rows ({most}) must be from 1 to {SAMPLE_ROWS}")
    for _ in range(ATTEMPTS):
        table = reader.described(name)
        try:
            return _histograms(reader, table, _drawn(table, most))
        except SlotIndexError as error:  # Rows left that had been drawn.
            lost = error
    raise lost


def _drawn(table: TableDescription, most: int) -> Array:
    """Ids of rows, in ascending order."""
    live = row_ids(table)
    ranks = np.random.default_rng().choice(len(live), min(most, len(live)), replace=False)
    return np.sort(live.start + ranks)


def _histograms(reader: RowReader, table: TableDescription, ids: Array) -> dict[str, Any]:
    said: dict[str, Any] = {"generation": table.generation_id, "stored": table.size, "write_count": table.write_count}
    if not len(ids) or table.schema is None:
        return {**said, "sampled": 0, "left_out": 0, "more_fields": 0, "row_ids": [], "fields": []}
    fields = _ordered([field for field in user_fields(table) if is_scalar(field, table.schema)], table)
    chosen = fields[:HISTOGRAMS]
    system = [ROW_ID.name, *([STEP_KIND.name] if table.config.trajectories else [])]
    names, priorities = [*system, *(field.name for field in chosen)], table.config.sampler.has_priorities
    batch = reader.in_slots(table.config.name, (ids % table.buffer_size).tolist(), names, with_priorities=priorities)
    steps = batch[_are_steps(batch)]
    found = _one_a_row(steps, ROW_ID.name)
    return {
        **said,
        "sampled": len(found),
        "left_out": len(ids) - len(found),
        "more_fields": len(fields) - len(chosen),
        "row_ids": found.tolist(),
        "fields": [
            *({"field": field.name, "what": "field", **histogram(_numbers(steps, field))} for field in chosen),
            *(_of_priorities(steps) if priorities else ()),
            {"field": "age", "what": "age", **histogram(np.maximum(table.write_count - 1 - found, 0))},
        ],
    }


def _ordered(fields: list[Field], table: TableDescription) -> list[Field]:
    """The reward first."""
    trajectories = table.config.trajectories
    reward = trajectories.reward if trajectories else None
    return sorted(fields, key=lambda field: (field.name != reward, field.name.rpartition(".")[2] != "reward"))


def _are_steps(batch: TensorDict) -> torch.Tensor:
    if not has_column(batch, STEP_KIND.name):
        return torch.ones(batch.batch_size[0], dtype=torch.bool)
    return torch.from_numpy(_one_a_row(batch, STEP_KIND.name) & StepKind.FINAL == 0)


def _of_priorities(steps: TensorDict) -> list[dict[str, Any]]:
    """One; none of an older server, which does not say them."""
    if not has_column(steps, PRIORITY.name):
        return []
    return [{"field": PRIORITY.name, "what": "priority", **histogram(_one_a_row(steps, PRIORITY.name))}]


def _numbers(steps: TensorDict, field: Field) -> Array:
    values = column(steps, field.name)
    return (values.to(torch.float64) if values.dtype.is_floating_point else values).numpy()


def _one_a_row(steps: TensorDict, name: str) -> Array:
    """The values of a system field: one a row, also where a row is a batch itself."""
    values = column(steps, name)
    found: Array = values.reshape(len(values), -1)[:, 0].numpy() if values.numel() else np.zeros(0, np.int64)
    return found
