"""How the batches of a table are drawn: its sampler and its rate limiter, and what both have to know of its rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tdreplay.priorities import Updated
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.row_listeners import Priorities
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.draws import DrawRows
from tdreplay_server.tables.leases import Drawn
from tdreplay_server.tables.limiters import Reserved, Supply, UnlimitedLimiter, Wait, made_limiter
from tdreplay_server.tables.rates import RowRate
from tdreplay_server.tables.samplers import UniformSampler, made_sampler
from tdreplay_server.tables.selection import BatchQuery, Selection

__all__ = ["Sampling"]


class Sampling:
    """The sampler and the rate limiter of one table, as a `RowListener`.

    Attributes:
        sampler: Chooses the rows.
        limiter: Decides who waits.
        updated: What became of all updates of priorities.
        rows_inserted: The rows that were inserted.
        rows_drawn: The rows that learners took in random batches.
        kept: As in `RowListener`.

    Args:
        config: What the table is made with.
        ring: The live rows of now. It takes no lock.
    """

    def __init__(self, config: TableConfig, ring: Callable[[], Ring]) -> None:
        self.sampler, self.limiter = made_sampler(config.sampler), made_limiter(config, lambda: Supply.of(ring()))
        self.updated = Updated(0, 0)
        self.rows_inserted, self.rows_drawn = RowRate(), RowRate()
        self._uniform, self._counting = UniformSampler(), threading.Lock()
        self.kept = Kept(tuple(self.sampler.columns), (*self.sampler.values, *self.limiter.values))

    @property
    def is_unlimited(self) -> bool:
        """Whether nobody waits, and nobody counts what is drawn."""
        return isinstance(self.limiter, UnlimitedLimiter)

    def draw_of(self, query: BatchQuery) -> DrawRows:
        """What draws the rows of a query."""
        return self._uniform.draw if query.uniform else self.sampler.draw

    def leased(self, rows: int, batches: int, wait: Wait, select: Callable[[int], Selection]) -> Drawn:
        """As many batches of `rows` rows as the limiter lets through, one at least and `batches` at most, each with its lease.

        Args:
            rows: The number of rows of a batch.
            batches: How many batches.
            wait: How long it may wait.
            select: Draws so many batches.

        Raises:
            RateLimitedError: none can be drawn within the time.
        """
        with self.limiter.sampling(rows, batches, wait) as reserved:
            return Drawn(select(reserved.batches), [_Lease(self, reserved) for _ in range(reserved.batches)])

    def counted(self, updated: Updated) -> Updated:
        """The same, after it was counted."""
        with self._counting:
            self.updated = Updated(self.updated.updated + updated.updated, self.updated.stale + updated.stale)
        return updated

    def opened(self, state: SlotState, ring: Ring) -> None:
        """As `RowListener.opened`."""
        self.sampler.opened(state, ring.buffer_size)
        self.limiter.opened(state, ring)

    def emptied(self, ring: Ring) -> None:
        """As `RowListener.emptied`."""
        self.limiter.emptied(ring)

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """As `RowListener.written`."""
        self.sampler.written(ids, priorities)
        self.rows_inserted.add(len(ids))

    def inserted(self, ids: range) -> None:
        """As `RowListener.inserted`."""
        self.sampler.inserted(ids)
        self.limiter.changed()

    def evicted(self, ids: range) -> None:
        """As `RowListener.evicted`."""
        self.sampler.evicted(ids)
        self.limiter.changed()


class _Lease:
    """The lease of one of the batches that were reserved."""

    def __init__(self, sampling: Sampling, reserved: Reserved) -> None:
        self._sampling, self._reserved = sampling, reserved

    def taken(self) -> None:
        self._sampling.limiter.taken(self._reserved)
        self._sampling.rows_drawn.add(self._reserved.rows)

    def give_back(self) -> None:
        self._sampling.limiter.given_back(self._reserved)
