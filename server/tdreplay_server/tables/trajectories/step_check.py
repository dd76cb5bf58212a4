"""Whether steps that are to be inserted go on where their episodes are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import EpisodeError, SchemaError
from tdreplay.schema import Schema
from tdreplay.system_fields import STEP_FIELDS, WINDOW_NAMES
from tdreplay.trajectories import Trajectories
from tdreplay_server.durability.insert import Insert
from tdreplay_server.storage.ring import Slots
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex
from tdreplay_server.tables.trajectories.step_columns import END, FINAL, FINAL_FOLLOWS, Kinds, StepColumns

__all__ = ["StepCheck", "check_step_schema"]

MOST_GONE = 1 << 12
"""So many writers of episodes that are gone are remembered at most."""


def check_step_schema(schema: Schema, trajectories: Trajectories) -> None:
    """Passes where rows of this schema can be steps.

    Raises:
        SchemaError: they cannot; the message names the first field that is missing, or that is wrong.
    """
    for field in STEP_FIELDS:
        found = schema.fields_by_name.get(field.name)
        if found is None or (found.dtype, found.shape) != (field.dtype, field.shape):
            raise SchemaError(
                f"field {field.name!r}: expected {field} in every row: the rows of this table are steps, and trajectory_writer() writes them"
            )
    if schema.row_shape:
        raise SchemaError(f"batch_size: expected [n], got [n, *{list(schema.row_shape)}]: a step of a trajectory is no batch")
    wrong = sorted(WINDOW_NAMES & schema.fields_by_name.keys())
    if wrong:
        raise SchemaError(f"field {wrong[0]!r} is reserved: batches of windows have one")
    for name in (*trajectories.ends, *trajectories.final_fields):
        if not any(field.name == name or field.name.startswith(f"{name}.") for field in schema.fields):
            raise SchemaError(f"field {name!r} is missing: the trajectories of this table have it, {trajectories}")
    _check_ends(schema, trajectories)


def _check_ends(schema: Schema, trajectories: Trajectories) -> None:
    for name in trajectories.ends:
        end = schema.fields_by_name.get(name)
        if end is None or end.dtype is not torch.bool or math.prod(end.shape) != 1:
            raise SchemaError(f"field {name!r}: expected BOOL with one value a step, got {end or 'fields below it'}: it says that an episode ended")


class StepCheck:
    """Looks at steps before they are stored. One thread at a time uses it: the one that is about to store them.

    Args:
        index: What is known of the episodes of live rows.
    """

    def __init__(self, index: EpisodeIndex) -> None:
        self._index = index
        self._writers: dict[int, str] = {}

    def check(self, insert: Insert, before: Sequence[Insert]) -> None:
        """Passes where an insert can be stored after those `before`, which were checked and are stored together with it.

        Raises:
            EpisodeError: a step does not go on where its episode is.
        """
        columns = StepColumns.given(insert.columns)
        columns.check_values()
        self._index.current()
        self._index.expect(None)
        if before:
            columns = StepColumns.joined([*(StepColumns.given(other.columns) for other in before), columns])
        ordered = columns.by_episode()
        self._check_order(columns, *ordered)
        self._check_writer(columns.episode_ids[-insert.rows :], insert)
        if not before:
            self._index.expect((columns, *ordered))

    def _check_order(self, columns: StepColumns, order: Slots, firsts: Slots) -> None:
        ids, steps, kinds = columns.episode_ids[order], columns.steps[order], columns.kinds[order]
        known_steps, known_kinds, known = self._known(ids[firsts])
        previous_steps, previous_kinds = np.empty_like(steps), np.empty_like(kinds)
        previous_steps[1:], previous_kinds[1:] = steps[:-1], kinds[:-1]
        previous_steps[firsts], previous_kinds[firsts] = known_steps, known_kinds
        follows = np.ones(len(ids), np.bool_)
        follows[firsts] = known
        _check_steps(ids, steps, previous_steps, follows)
        _check_kinds(ids, kinds, previous_kinds, follows)

    def _known(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Kinds, npt.NDArray[np.bool_]]:
        """The number and the kind of the newest row of each episode, and whether there is one."""
        episodes = self._index.episodes
        places = episodes.find(ids.tolist())
        known = places >= 0
        final = episodes.has_final[places]
        return episodes.last_step[places] + final, np.where(final, FINAL, episodes.kind[places]), known

    def _check_writer(self, episode_ids: npt.NDArray[np.int64], insert: Insert) -> None:
        writer, writers = "" if insert.key is None else insert.key.insert_id.writer_id, self._writers
        ids = episode_ids.tolist()
        found = set(map(writers.get, ids))
        if found - {None, writer}:
            other = next(episode_id for episode_id in ids if writers.get(episode_id, writer) != writer)
            raise EpisodeError(f"episode {other}: another writer writes it. Each episode has one writer at a time")
        if None in found:
            writers.update(dict.fromkeys(ids, writer))
        if len(writers) > len(self._index.episodes) + MOST_GONE:
            self._writers = {
                episode_id: known for episode_id, known in writers.items() if episode_id in self._index.episodes.places or known == writer
            }

    @property
    def writers(self) -> Mapping[int, str]:
        """The id of an episode -> its writer: '' for one without an id. Of some episodes none is known: those of before the server started."""
        return self._writers


def _check_steps(ids: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], previous: npt.NDArray[np.int64], follows: npt.NDArray[np.bool_]) -> None:
    wrong: Slots = np.flatnonzero(follows & (steps != previous + 1))
    if len(wrong):
        at = wrong[0]
        raise EpisodeError(f"episode {ids[at]}: step {steps[at]} came after step {previous[at]}; the next one must be {previous[at] + 1}")


def _check_kinds(ids: npt.NDArray[np.int64], kinds: Kinds, previous: Kinds, follows: npt.NDArray[np.bool_]) -> None:
    announced = (previous & FINAL_FOLLOWS) != 0
    over = ((previous & FINAL) != 0) | (((previous & END) != 0) & ~announced)
    final = (kinds & FINAL) != 0
    wrong: Slots = np.flatnonzero(follows & (over | (final != announced)))
    if not len(wrong):
        return
    at = wrong[0]
    if over[at]:
        raise EpisodeError(f"episode {ids[at]}: a step came after its end")
    if final[at]:
        raise EpisodeError(f"episode {ids[at]}: a final observation came, and the episode has not ended, or was to have none")
    raise EpisodeError(f"episode {ids[at]}: a step came after its end; its final observation was to come")
