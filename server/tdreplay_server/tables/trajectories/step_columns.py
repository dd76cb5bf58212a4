"""What the writer of a trajectory says of rows, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from tdreplay.errors import EpisodeError
from tdreplay.system_fields import EPISODE_ID, STEP, STEP_FIELDS, STEP_KIND, StepKind
from tdreplay_server.storage.ring import Slots

__all__ = ["END", "FINAL", "FINAL_FOLLOWS", "Kinds", "StepColumns"]

Kinds = npt.NDArray[np.uint8]
"""What rows are to their episodes: a `StepKind` each, of shape [n]."""

TERMINATED, TRUNCATED, FINAL_FOLLOWS, FINAL = (
    np.uint8(kind) for kind in (StepKind.TERMINATED, StepKind.TRUNCATED, StepKind.FINAL_FOLLOWS, StepKind.FINAL)
)
END = np.uint8(TERMINATED | TRUNCATED)
IS_KIND = np.zeros(256, np.bool_)
IS_KIND[[0, TERMINATED, TRUNCATED, TERMINATED | FINAL_FOLLOWS, TRUNCATED | FINAL_FOLLOWS, FINAL]] = True

MAX_STEP = (1 << 32) - 2
"""The highest number of a step."""

DTYPES: Mapping[str, Any] = {EPISODE_ID.name: np.int64, STEP.name: np.int64, STEP_KIND.name: np.uint8}


class StepColumns(NamedTuple):
    """Rows of a table of trajectories, in the order of their ids.

    Attributes:
        episode_ids: The episode of each row: int64 of shape [n].
        steps: Its number in the episode: int64 of shape [n].
        kinds: What it is to the episode: uint8 of shape [n].
    """

    episode_ids: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    kinds: Kinds

    @classmethod
    def read(cls, ranges: Sequence[tuple[int, int]], read: Callable[[int, int, str], npt.NDArray[Any]]) -> Self:
        """The rows in some ranges of slots. `read`: (start, stop, field) -> the bytes of the field in these slots."""
        return cls(*(np.concatenate([read(*part, field.name).view(DTYPES[field.name]) for part in ranges]) for field in STEP_FIELDS))

    @classmethod
    def given(cls, columns: Mapping[str, Any]) -> Self:
        """Those of columns that are to be inserted: tensors or rows of bytes."""
        return cls(*(_array(columns[field.name], DTYPES[field.name]) for field in STEP_FIELDS))

    @staticmethod
    def owned(columns: Mapping[str, Any]) -> dict[str, Any]:
        """The same columns, with copies of those of steps: whoever gave them, or a client that shares their memory, could change them meanwhile."""
        return {**columns, **{field.name: _copied(columns[field.name]) for field in STEP_FIELDS}}

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of several parts, one after the other."""
        return parts[0] if len(parts) == 1 else cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def by_episode(self) -> tuple[Slots, Slots]:
        """An order of the rows in which those of an episode stand together, in their order; and the places at which another episode begins."""
        order = self.episode_ids.argsort(kind="stable")
        ids = self.episode_ids[order]
        first = np.ones(len(ids), np.bool_)
        np.not_equal(ids[1:], ids[:-1], out=first[1:])
        return order, np.flatnonzero(first)

    def check_values(self) -> None:
        """Passes where each value is one that a row can have.

        Raises:
            EpisodeError: one is not.
        """
        if self.episode_ids.min() < 0:
            raise EpisodeError(f"episode_id ({self.episode_ids.min()}) must be from 0 up")
        if self.steps.min() < 0 or self.steps.max() > MAX_STEP:
            wrong_step = self.steps[(self.steps < 0) | (self.steps > MAX_STEP)][0]
            raise EpisodeError(f"step ({wrong_step}) must be from 0 to {MAX_STEP}")
        known = IS_KIND[self.kinds]
        if not known.all():
            raise EpisodeError(f"step_kind ({self.kinds[~known][0]}) must be one of {np.flatnonzero(IS_KIND).tolist()}")


def _copied(column: Any) -> Any:
    return column.detach().clone() if isinstance(column, torch.Tensor) else column.copy()


def _array(column: Any, dtype: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.detach().cpu().numpy() if isinstance(column, torch.Tensor) else column.view(dtype)
    return np.ascontiguousarray(values)
