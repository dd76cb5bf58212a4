"""Anchors that are all equally probable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tdreplay.windows import AnchorRule
from tdreplay_server.storage.ring import Ring, RowIds, Slots
from tdreplay_server.tables.samplers import Draw, UniformSampler
from tdreplay_server.tables.samplers.batches import each_batch
from tdreplay_server.tables.trajectories.anchor_samplers import AnchorSamplers
from tdreplay_server.tables.trajectories.episode_index import EpisodeIndex

__all__ = ["UniformAnchors"]

ROUNDS = 8
"""How often rows are drawn in place of those that are no anchors, before the anchors are counted."""


class UniformAnchors(AnchorSamplers):
    """Draws rows, and others in place of those that are no anchors. So it takes no memory, and no time when rows come and go.

    Where most rows of a batch are no anchors, and after some rounds, the rest of the batch is drawn among the anchors alone. Both ways each anchor
    is equally probable, whatever was drawn before. A batch depends on its own generator alone.

    Args:
        index: Knows the episodes.
    """

    def __init__(self, index: EpisodeIndex) -> None:
        super().__init__(UniformSampler, index)

    def draw_anchors(self, rule: AnchorRule, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `AnchorSamplers.draw_anchors`. The anchors are not counted."""
        self._index.current()
        ids = each_batch(generators, lambda generator: generator.integers(ring.oldest, ring.write_count, rows))
        places = np.flatnonzero(~self._index.are_anchors(ids, rule))
        rare = np.bincount(places // rows, minlength=len(generators)) * 4 > 3 * rows
        for _ in range(ROUNDS if len(places) else 0):
            places = self._drawn_again(ids, places, rare, rule, rows, generators, ring)
        for batch in np.unique(places // rows):
            some = places[places // rows == batch]
            ids[some] = super().draw_anchors(rule, len(some), [generators[batch]], ring).ids
        return Draw(ids, None, None, 0, 0.0)

    def draw_counted(self, rule: AnchorRule, rows: int, generators: Sequence[np.random.Generator], ring: Ring) -> Draw:
        """As `AnchorSamplers.draw_counted`. To count them takes the memory of a sampler of the rule."""
        return self.draw_anchors(rule, rows, generators, ring)._replace(size=self.totals_of(rule, ring).rows)

    def _drawn_again(
        self,
        ids: RowIds,
        places: Slots,
        rare: npt.NDArray[np.bool_],
        rule: AnchorRule,
        rows: int,
        generators: Sequence[np.random.Generator],
        ring: Ring,
    ) -> Slots:
        """Draws other rows at some places, but for batches in which anchors are rare. It gives the places at which there is no anchor then."""
        batches = places // rows
        again = places[~rare[batches]]
        if not len(again):
            return places
        for batch in np.unique(again // rows):
            some = again[again // rows == batch]
            ids[some] = generators[batch].integers(ring.oldest, ring.write_count, len(some))
        return np.concatenate([places[rare[batches]], again[~self._index.are_anchors(ids[again], rule)]])
