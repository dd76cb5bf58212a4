"""Episodes of which a row was overwritten while they were read: what comes after the gap is left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tdreplay.schema import Columns
from tdreplay.system_fields import EPISODE_ID, STEP, STEP_KIND, StepKind

__all__ = ["EpisodeCuts"]

ENDS = StepKind.TERMINATED | StepKind.TRUNCATED


class EpisodeCuts:
    """Finds the rows that do not follow the row before them of their episode. A table takes only steps that follow one another."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}  # Of each episode that goes on: the number of its next row.
        self._cut: set[int] = set()

    def kept(self, rows: Columns) -> npt.NDArray[np.bool_]:
        """For each of the next rows, in the order of their ids, whether it is kept."""
        ids, steps, kinds = (rows[field.name].numpy() for field in (EPISODE_ID, STEP, STEP_KIND))
        kept = np.ones(len(ids), np.bool_)
        order = np.argsort(ids, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(ids[order])) + 1):
            kept[places] = self._of_episode(int(ids[places[0]]), steps[places], int(kinds[places[-1]]))
        return kept

    def _of_episode(self, episode_id: int, steps: npt.NDArray[np.int64], last_kind: int) -> npt.NDArray[np.bool_]:
        expected = self._next.get(episode_id, steps[0]) + np.arange(len(steps))
        kept: npt.NDArray[np.bool_] = np.logical_and.accumulate(steps == expected)
        if episode_id in self._cut:
            kept[:] = False
        elif not kept.all():
            self._cut.add(episode_id)
        elif last_kind & StepKind.FINAL or (last_kind & ENDS and not last_kind & StepKind.FINAL_FOLLOWS):
            self._next.pop(episode_id, None)
        else:
            self._next[episode_id] = int(steps[-1]) + 1
        return kept
