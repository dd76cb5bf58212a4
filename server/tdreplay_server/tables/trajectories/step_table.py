"""What a table of trajectories knows beside its rows, and what it draws and reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import EmptyTableError, EpisodeNotFoundError, InvalidArgumentError, SlotIndexError
from tdreplay.memory import Rows
from tdreplay.samplers import Sampler, Uniform
from tdreplay.schema import Schema
from tdreplay.system_fields import STEP_KIND
from tdreplay.trajectories import Trajectories
from tdreplay.trajectory_state import TrajectoryState
from tdreplay.windows import AnchorRule, WindowQuery
from tdreplay_server.durability.insert import Insert
from tdreplay_server.durability.slot_state import SlotState
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.tables.draws import DrawRows
from tdreplay_server.tables.reading import write_drawn
from tdreplay_server.tables.samplers import Totals, made_sampler
from tdreplay_server.tables.selection import RowsInSlots, Selection
from tdreplay_server.tables.trajectories.anchor_samplers import MOST_RULES, AnchorSamplers
from tdreplay_server.tables.trajectories.connected_writers import ConnectedWriters
from tdreplay_server.tables.trajectories.counts import trajectory_state
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex
from tdreplay_server.tables.trajectories.episode_list import EpisodeList
from tdreplay_server.tables.trajectories.returns import Returns, Rewards
from tdreplay_server.tables.trajectories.step_check import StepCheck, check_step_schema
from tdreplay_server.tables.trajectories.uniform_anchors import UniformAnchors
from tdreplay_server.tables.trajectories.window_format import WindowFormat, WindowFormats
from tdreplay_server.tables.trajectories.window_reader import WindowFinder, gather_windows, take_windows

__all__ = ["StepTable"]

MOST_STEPS = 1 << 18
"""So many steps of windows are found at once."""


class StepTable:
    """The episodes of a table, its anchors, and the windows around these. Calls that read come under the table's shared lock.

    Attributes:
        index: Which rows are steps of which episode.
        sampler: Chooses anchors.
        uniform: Chooses them too, all of them with the same probability. It may be the same one.
        steps: Looks at steps that are to be inserted.
        writers: The writers that are connected.

    Args:
        trajectories: What is known of the episodes.
        sampler: What is to choose the anchors.
        schema: Gives the schema of the rows; None before the first ones.
        read: (start, stop, field) -> the bytes of the field in the slots from start to stop.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        sampler: Sampler,
        schema: Callable[[], Schema | None],
        read: Callable[[int, int, str], npt.NDArray[Any]],
    ) -> None:
        self._trajectories = trajectories
        self.index = EpisodeIndex(read, Returns(Rewards(trajectories.reward, schema, read)))
        self.writers = ConnectedWriters()
        self.steps = StepCheck(self.index)
        self._formats = WindowFormats()
        self._checked_schema: Schema | None = None  # The one of the last rows that were inserted, mostly that of the next ones.
        self._latest = threading.local()  # The selection of which this thread read a part last, and its windows.
        self._lately: dict[AnchorRule, None] = {}  # The rules by which anchors were drawn, here or from another shard.
        self.uniform = UniformAnchors(self.index)
        self.sampler: AnchorSamplers = self.uniform if isinstance(sampler, Uniform) else AnchorSamplers(lambda: made_sampler(sampler), self.index)

    # -- which rows are live ------------------------------------------------------------------------------------------------------------------

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Forgets the rows. The sampler hears of it beside this."""
        self.index.emptied(ring.buffer_size)
        self.index.returns.opened(ring)
        self.uniform.opened(state, ring.buffer_size)

    def evicted(self, ids: range) -> None:
        """These rows are not live any more. The sampler heard of it before."""
        self.uniform.evicted(ids)
        self.index.evicted(ids)

    # -- inserts ------------------------------------------------------------------------------------------------------------------------------

    def check_schema(self, schema: Schema) -> None:
        """As `check_step_schema`."""
        if schema is not self._checked_schema:
            check_step_schema(schema, self._trajectories)
            self._checked_schema = schema

    def check(self, insert: Insert, before: Sequence[Insert]) -> None:
        """As `RowListener.check`."""
        self.steps.check(insert, before)

    # -- reads --------------------------------------------------------------------------------------------------------------------------------

    def format(self, schema: Schema, query: WindowQuery, fields: Sequence[str] | None, buffer_size: int) -> WindowFormat:
        """What a query of windows reads. Errors: as `window_format`.

        Raises:
            InvalidArgumentError: a window has more steps than the table has rows.
        """
        rule = query.rule
        length = rule.before + rule.steps + rule.next_step
        if length > buffer_size:
            raise InvalidArgumentError(f"a window of {length} steps is longer than the table: its buffer_size is {buffer_size}")
        return self._formats.found(schema, query, None if fields is None else tuple(fields))

    def sent(self, schema: Schema) -> tuple[Any, ...]:
        """The fields of a batch if the request names none."""
        return tuple(field for field in schema.sent_fields if field.name != STEP_KIND.name)

    def anchors_in(self, slots: Slots, query: WindowQuery, ring: Ring) -> tuple[RowIds, RowIds]:
        """The anchors in slots of live rows, and the oldest row that each needs.

        Raises:
            SlotIndexError: one of them holds none.
        """
        self.index.current()
        ids, rule = ring.row_ids(slots), query.rule
        wrong = np.flatnonzero(~self.index.are_anchors(ids, rule))
        if len(wrong):
            raise SlotIndexError(f"index {slots[wrong[0]]} holds no step whose window is there: {self._why(ids[wrong[0]])}")
        return ids, self.index.first_rows(ids, rule)

    def _why(self, row_id: np.int64) -> str:
        if not self.index.are_steps(np.array([row_id]))[0]:
            return "it is the final observation of an episode"
        return "steps before it were overwritten, or steps after it did not come, or the view leaves it out"

    def are_lost(self, rule: AnchorRule, ids: RowIds, ring: Ring) -> npt.NDArray[np.bool_]:
        """For each anchor that was drawn whether it, or a row that it needs, was overwritten."""
        self.index.current()
        return (ids < ring.oldest) | ~self.index.are_anchors(ids, rule)

    def all_steps(self, ring: Ring) -> StepsInSlots:
        """Every step, in slot order.

        Raises:
            EmptyTableError: there is none.
        """
        self.index.current()
        slots = ring.in_slot_order(np.arange(ring.size))
        steps = StepsInSlots(slots[self.index.are_steps(ring.row_ids(slots))], self.index)
        if not steps.rows:
            raise EmptyTableError("the table has no step: final observations alone are left")
        return steps

    def drawing(self, rule: AnchorRule, *, uniform: bool, counted: bool) -> DrawRows:
        """What draws anchors of a rule: the table's sampler, or one for which all are equally probable. `counted`: the draws say of how many."""
        self._note(rule)
        sampler = self.uniform if uniform else self.sampler
        return partial(sampler.draw_counted if counted else sampler.draw_anchors, rule)

    def totals(self, rule: AnchorRule, ring: Ring, *, uniform: bool) -> Totals:
        """Among what anchors of a rule would be drawn now: they may be drawn from another shard."""
        self._note(rule)
        return (self.uniform if uniform else self.sampler).totals_of(rule, ring)

    def _note(self, rule: AnchorRule) -> None:
        if rule not in self._lately:
            self._lately = dict.fromkeys((*self._lately, rule)[-MOST_RULES:])

    def state(self) -> TrajectoryState:
        """What is known of the steps and episodes."""
        self.index.current()
        return trajectory_state(self.index, tuple(self._lately))

    def episodes(self) -> EpisodeList:
        """The episodes of which a step is stored."""
        self.index.current()
        return EpisodeList(self.index, self.steps.writers, self.writers.names())

    def rows_of(self, episode_id: int) -> tuple[RowIds, bool]:
        """The rows of an episode, in order, and whether the last one is the final observation.

        Raises:
            EpisodeNotFoundError: no step of it is stored.
        """
        self.index.current()
        ids = self.index.rows_of(episode_id)
        if not len(ids) or not self.index.are_steps(ids[:1])[0]:
            raise EpisodeNotFoundError(f"episode {episode_id} is not there: no step of it is stored")
        return ids, not self.index.are_steps(ids[-1:])[0]

    def gathered(
        self,
        storage: RowStorage,
        ring: Ring,
        selection: Selection,
        found: WindowFormat,
        start: int,
        stop: int,
        out: dict[str, Rows],
        *,
        threads: bool,
    ) -> None:
        """Copies the windows of rows of a selection, from start to stop, into `out`, with what is known of their draw: as `gather_windows`."""
        finder, first = self._finder(ring, selection, found, start, stop)
        write_drawn(selection.drawn(start, stop), out)
        gather_windows(storage, finder, start - first, stop - first, found, out, threads=threads)

    def _finder(self, ring: Ring, selection: Selection, found: WindowFormat, start: int, stop: int) -> tuple[WindowFinder, int]:
        """The windows of these rows, and the place in the selection of the first row that it knows.

        Of a batch that goes out in several blocks, all windows are found with the first block.
        """
        self.index.current()
        if stop - start == selection.rows or selection.rows * found.longest > MOST_STEPS:
            return WindowFinder(self.index, selection.chosen.ids(ring, start, stop), found), start
        known = getattr(self._latest, "known", None)
        if known is None or known[0] is not selection or known[1].oldest != self.index.oldest:
            known = (selection, WindowFinder(self.index, selection.chosen.ids(ring, 0, selection.rows), found))
        self._latest.known = known if stop < selection.rows else None
        return known[1], 0

    def taken(self, storage: RowStorage, ring: Ring, selection: Selection, found: WindowFormat) -> dict[str, torch.Tensor]:
        """As `take_windows`, of all rows of a selection, with what is known of their draw."""
        finder, _ = self._finder(ring, selection, found, 0, selection.rows)
        drawn = selection.drawn(0, selection.rows)
        return take_windows(storage, finder, found) | {name: torch.from_numpy(values.copy()) for name, values in drawn.items()}


class StepsInSlots(RowsInSlots):
    """The steps in some slots: newer ones, where a slot was overwritten since it was chosen.

    In place of a final observation that came into a slot, the step before it comes.
    """

    def __init__(self, slots: Slots, index: EpisodeIndex) -> None:
        super().__init__(lambda start, stop: slots[start:stop])
        self.rows, self._index = len(slots), index

    def ids(self, ring: Ring, start: int, stop: int) -> RowIds:
        """The ids of the steps that lie there in `ring`."""
        ids = super().ids(ring, start, stop)
        self._index.current()
        final = ~self._index.are_steps(ids)
        if final.any():
            before = self._index.before(ids[final])
            ids[final] = np.where(before >= 0, before, ids[~final][0] if not final.all() else ids[final])
        return ids
