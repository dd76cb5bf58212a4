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
from tdreplay_server.tables.limiters import UnlimitedLimiter, Wait, made_limiter
from tdreplay_server.tables.samplers import UniformSampler, made_sampler
from tdreplay_server.tables.selection import BatchQuery, Selection

__all__ = ["Sampling"]


class Sampling:
    """The sampler and the rate limiter of one table, as a `RowListener`.

    Attributes:
        sampler: Chooses the rows.
        limiter: Decides who waits.
        updated: What became of all updates of priorities.
        kept: As in `RowListener`.

    Args:
        config: What the table is made with.
    """

    def __init__(self, config: TableConfig) -> None:
        self.sampler, self.limiter = made_sampler(config.sampler), made_limiter(config.rate_limiter)
        self.updated = Updated(0, 0)
        self._uniform, self._counting = UniformSampler(), threading.Lock()
        self.kept = Kept(tuple(self.sampler.columns), (*self.sampler.values, *self.limiter.values))
        self._oldest = self._end = 0
        ring = Ring(config.buffer_size)
        self.limiter.opened(SlotState(Kept(values=tuple(self.limiter.values)), ring.buffer_size), ring)

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
        count = self.limiter.sampling(rows, batches, wait)
        leases = [_Lease(self, rows) for _ in range(count)]
        try:
            return Drawn(select(count), leases)
        except BaseException:
            for lease in leases:
                lease.give_back()
            raise

    def counted(self, updated: Updated) -> Updated:
        """The same, after it was counted."""
        with self._counting:
            self.updated = Updated(self.updated.updated + updated.updated, self.updated.stale + updated.stale)
        return updated

    def opened(self, state: SlotState, ring: Ring) -> None:
        """As `RowListener.opened`."""
        self._oldest = self._end = ring.write_count
        self.sampler.opened(state, ring.buffer_size)
        self.limiter.opened(state, ring)

    def emptied(self, ring: Ring) -> None:
        """As `RowListener.emptied`."""
        self.limiter.opened(SlotState(Kept(values=tuple(self.limiter.values)), ring.buffer_size), ring)

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """As `RowListener.written`."""
        self.sampler.written(ids, priorities)

    def inserted(self, ids: range) -> None:
        """As `RowListener.inserted`."""
        self.sampler.inserted(ids)
        if self._oldest == self._end:
            self._oldest = ids.start
        self._sized(self._oldest, ids.stop)

    def evicted(self, ids: range) -> None:
        """As `RowListener.evicted`."""
        self.sampler.evicted(ids)
        self._sized(*((ids.stop, self._end) if ids.start <= self._oldest else (self._oldest, ids.start)))

    def _sized(self, oldest: int, end: int) -> None:
        self._oldest, self._end = oldest, end
        self.limiter.sized(end - oldest)


class _Lease:
    """The lease of a batch of so many rows."""

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self._sampling, self._rows = sampling, rows

    def taken(self) -> None:
        self._sampling.limiter.taken(self._rows)

    def give_back(self) -> None:
        self._sampling.limiter.given_back(self._rows)
