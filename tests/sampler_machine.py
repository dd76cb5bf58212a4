"""A state machine that plays all that happens to a table's rows, and keeps what is true of them in plain dictionaries."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from played_rows import PlayedRows
from tdreplay import samplers
from tdreplay_server.tables.samplers import Draw

__all__ = ["SamplerMachine", "priorities", "short"]

short = settings(max_examples=50, stateful_step_count=25, deadline=None)
shares = st.sampled_from([0.02, 0.1, 0.3, 0.6, 1.0])
priorities = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.floats(0, 1e6))


class SamplerMachine(RuleBasedStateMachine):
    """Attributes:

    value: The sampler.
    rows: Of each live row: its id -> its priority.
    withheld: The ids of live rows that are withheld.
    highest: The highest priority so far.
    """

    value: ClassVar[samplers.Sampler]

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, float] = {}
        self.withheld: set[int] = set()
        self.highest = 1.0

    @initialize(buffer_size=st.sampled_from([1, 3, 16, 40, 5000]))
    def open(self, buffer_size: int) -> None:
        self.played = PlayedRows(self.value, buffer_size)

    # -- what happens -------------------------------------------------------------------------------------------------------------------------

    @rule(share=shares | st.just(1.4), given=st.none() | st.lists(priorities, min_size=1, max_size=9))
    def insert(self, share: float, given: list[float] | None) -> None:
        ring = self.played.ring
        count = max(1, int(share * ring.buffer_size))
        values = [self.highest] * count if given is None else np.resize(given, count).tolist()
        if given is not None:
            self.highest = max(self.highest, *values)
        self.rows |= dict(zip(range(ring.write_count, ring.write_count + count), values, strict=True))
        self.played.insert(count, None if given is None else values)
        self._forget()

    @rule(share=shares)
    def leave(self, share: float) -> None:
        self.played.leave(int(share * len(self.rows)))
        self._forget()

    @rule(share=shares)
    def rewind(self, share: float) -> None:
        self.played.rewind(int(share * len(self.rows)))
        self._forget()

    @rule(share=shares, inserted=shares, seed=st.integers(0, 9))
    def draw_around_a_rewind(self, share: float, inserted: float, seed: int) -> None:
        """The new rows get ids that were drawn from before."""
        self.draw(60, seed)
        self.rewind(share)
        self.insert(inserted, None)
        self.draw(60, seed)

    @rule(buffer_size=st.sampled_from([2, 30]))
    def reset(self, buffer_size: int) -> None:
        self.played.reset(buffer_size)
        self.highest = 1.0
        self._forget()

    @rule()
    def reopen(self) -> None:
        self.played.reopen()
        self.played.withhold(self.withheld)

    def _forget(self) -> None:
        live = range(self.played.ring.oldest, self.played.ring.write_count)
        self.rows = {row_id: priority for row_id, priority in self.rows.items() if row_id in live}
        self.withheld &= self.rows.keys()

    @rule(places=st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
    def withhold(self, places: list[float]) -> None:
        ids = self._at(places)
        self.played.withhold(ids)
        self.withheld |= set(ids)

    @rule()
    def withhold_all_but_one(self) -> None:
        ids = list(self.rows)[1:]
        self.played.withhold(ids)
        self.withheld |= set(ids)

    @rule(places=st.lists(st.floats(0, 1, exclude_max=True), max_size=30))
    def offer(self, places: list[float]) -> None:
        held = sorted(self.withheld)
        ids = [held[int(place * len(held))] for place in places] if held else []
        self.played.offer(ids)
        self.withheld -= set(ids)

    @rule()
    def offer_all(self) -> None:
        self.played.offer(self.withheld)
        self.withheld.clear()

    def _at(self, places: list[float]) -> list[int]:
        live = list(self.rows)
        return [live[int(place * len(live))] for place in places] if live else []

    # -- what is drawn ------------------------------------------------------------------------------------------------------------------------

    @property
    def drawable(self) -> list[int]:
        """The ids that may be drawn, in ascending order."""
        return sorted(self.rows.keys() - self.withheld)

    @rule(rows=st.integers(1, 60), seed=st.integers(0, 9))
    def draw(self, rows: int, seed: int) -> None:
        if self.drawable:
            drawn = self.played.draw(rows, seed, seed + 1)
            assert drawn.size == len(self.drawable)
            assert len(drawn.ids) == 2 * rows
            assert set(drawn.ids.tolist()) <= set(self.drawable)
            self.check(drawn, rows)

    def check(self, drawn: Draw, rows: int) -> None:
        """Passes where two batches of so many rows are what they have to be."""
        raise NotImplementedError

    @invariant()
    def ids_follow_one_another(self) -> None:
        if hasattr(self, "played"):
            assert list(self.rows) == list(range(self.played.ring.oldest, self.played.ring.write_count))


class PriorityMachine(SamplerMachine):
    """A state machine with updates of priorities."""

    @rule(updates=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), priorities), max_size=30))
    def update(self, updates: list[tuple[float, float]]) -> None:
        first, end = max(0, self.played.ring.oldest - 20), self.played.ring.write_count
        ids = [first + int(place * (end - first)) for place, _ in updates] if end else []
        live = [row_id in self.rows for row_id in ids]
        assert self.played.update(ids, [priority for _, priority in updates][: len(ids)]) == sum(live)
        last = {row_id: priority for row_id, (_, priority) in zip(ids, updates, strict=False) if row_id in self.rows}
        self.rows |= last
        self.highest = max(self.highest, *last.values(), 0)
