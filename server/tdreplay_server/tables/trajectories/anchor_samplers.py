"""The sampler of a table of trajectories: one sampler of the table's kind for each rule of anchors, each of which knows the anchors of its rule."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from tdreplay.errors import EmptyTableError
from tdreplay.windows import AnchorRule
from tdreplay_server.durability.insert import Priorities
from tdreplay_server.durability.slot_state import SlotColumn, SlotState, StateValue
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.samplers import Draw, Sampler, Totals
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex

__all__ = ["MOST_RULES", "AnchorSamplers"]

ANY_STEP = AnchorRule()
"""Every step is an anchor."""

MOST_RULES = 8
"""So many rules are kept. Each may take up to 10 bytes for each row of the table. Beyond that, the one that was used least lately is forgotten."""


class _Anchors:
    """The anchors of one rule, in a sampler. Rows that are no anchors are withheld in it."""

    def __init__(self, rule: AnchorRule, sampler: Sampler, index: EpisodeIndex, state: SlotState, buffer_size: int) -> None:
        self.rule, self.sampler, self._index, self._state, self._buffer_size = rule, sampler, index, state, buffer_size
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.sampler.opened(self._state, self._buffer_size)
        self._oldest = self._end = -1

    def follow(self) -> None:
        """Takes up the rows that came, and gives up those that went. The index is current."""
        oldest, end = self._index.oldest, self._index.end
        if (oldest, end) == (self._oldest, self._end):
            return
        try:
            self._follow(oldest, end)
        except BaseException:
            self._begin_anew()  # An interrupt (Ctrl-C) came between.
            raise

    def _follow(self, oldest: int, end: int) -> None:
        if self._end <= oldest or end < self._end:
            self._begin_anew()
            self._oldest = self._end = oldest
        index, new = self._index, np.arange(self._end, end)
        changed = [new, index.tails(self._end, self.rule.steps)]
        if self.rule.before:
            changed.append(index.heads(self._oldest, self.rule.before))
        if oldest > self._oldest:
            self.sampler.evicted(range(self._oldest, oldest))
        if len(new):
            self.sampler.inserted(range(self._end, end))
        self._note(np.unique(np.concatenate(changed)) if sum(map(len, changed[1:])) else new)
        self._oldest, self._end = oldest, end

    def _note(self, ids: RowIds) -> None:
        """Notes of rows that came, or whose windows changed, whether they are anchors."""
        are_anchors = self._index.are_anchors(ids, self.rule)
        self.sampler.withhold(ids[~are_anchors])
        old = ids < self._end
        self.sampler.offer(ids[are_anchors & old])


class AnchorSamplers:
    """Samplers of anchors, as one `Sampler` of a table. They share what is kept of the rows, as their priorities.

    Rows that come and go are noted when something is drawn the next time.

    Args:
        made: Makes a sampler of the table's kind.
        index: Knows the episodes.
    """

    def __init__(self, made: Callable[[], Sampler], index: EpisodeIndex) -> None:
        self._made, self._index = made, index
        self._kept = made()  # It writes what is kept of rows that come.
        self.columns: Sequence[SlotColumn] = self._kept.columns
        self.values: Sequence[StateValue] = self._kept.values
        self._mutex = threading.Lock()
        self._anchors: dict[AnchorRule, _Anchors] = {}  # The one that was used last stands last.

    # -- rows that come and go ----------------------------------------------------------------------------------------------------------------

    def opened(self, state: SlotState, buffer_size: int) -> None:
        """Forgets the rows. This is the state of those that come."""
        self._kept.opened(state, buffer_size)
        self._state, self._buffer_size = state, buffer_size
        self._anchors = {}

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """As `Sampler.written`."""
        self._kept.written(ids, priorities)

    def inserted(self, ids: range) -> None:
        """Nothing to note: the index does."""

    def evicted(self, ids: range) -> None:
        """Rows that are not live any more. The newest ones' ids may stand for others soon."""
        if ids.stop >= self._index.end:
            self._anchors = {}

    # -- drawing ------------------------------------------------------------------------------------------------------------------------------

    def draw(self, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`: any step."""
        return self.draw_anchors(ANY_STEP, rows, generators, ring)

    def draw_anchors(self, rule: AnchorRule, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `Sampler.draw`, of the anchors of a rule.

        Raises:
            EmptyTableError: there is none.
        """
        with self._mutex:
            anchors = self._followed(rule)
            try:
                return anchors.sampler.draw(rows, generators, ring)
            except EmptyTableError:
                why = f"the table has {ring.size} rows, and no step whose window is there ({_shown(rule)})"
                raise EmptyTableError(f"no step can be drawn: {why}") from None

    def draw_counted(self, rule: AnchorRule, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `draw_anchors`, and the draw says how many anchors there are, and what they weigh."""
        return self.draw_anchors(rule, rows, generators, ring)

    def totals(self, ring: Ring) -> Totals:
        """As `Sampler.totals`: of any steps."""
        return self.totals_of(ANY_STEP, ring)

    def totals_of(self, rule: AnchorRule, ring: Ring) -> Totals:
        """As `Sampler.totals`, of the anchors of a rule. Where they were drawn or counted before, only rows that came since are looked at."""
        with self._mutex:
            return self._followed(rule).sampler.totals(ring)

    def _followed(self, rule: AnchorRule) -> _Anchors:
        self._index.current()
        anchors = self._anchors.pop(rule, None)
        if anchors is None:
            anchors = _Anchors(rule, self._made(), self._index, self._state, self._buffer_size)
        self._anchors[rule] = anchors
        if len(self._anchors) > MOST_RULES:
            del self._anchors[next(iter(self._anchors))]
        anchors.follow()
        return anchors

    def check(self, priorities: Priorities) -> None:
        """As `Sampler.check`."""
        self._kept.check(priorities)

    def update(self, ids: RowIds, priorities: Priorities, ring: Ring) -> int:
        """As `Sampler.update`. Each rule's sampler follows."""
        with self._mutex:
            updated = 0
            for rule in list(self._anchors) or [ANY_STEP]:
                updated = self._followed(rule).sampler.update(ids, priorities, ring)
            return updated

    def priorities(self, ids: RowIds) -> Priorities:
        """As `Sampler.priorities`."""
        return self._kept.priorities(ids)

    def withhold(self, ids: RowIds) -> None:
        """No row of such a table leaves because it was drawn."""

    def offer(self, ids: RowIds) -> None:
        """As `withhold`."""


def _shown(rule: AnchorRule) -> str:
    return ", ".join(f"{name} {value}" for name, value in rule._asdict().items())
