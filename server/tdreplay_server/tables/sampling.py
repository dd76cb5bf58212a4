"""How the batches of a table are drawn: its sampler, its rate limiter and what counts draws, and what they have to know of its rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tdreplay.errors import FailedPreconditionError, RateLimitedError
from tdreplay.memory import Rows
from tdreplay.priorities import Updated
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.insert import Insert, Priorities
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring, RowIds
from tdreplay_server.tables.activity import Activity
from tdreplay_server.tables.consumption import Consumption, TooFewDrawsError
from tdreplay_server.tables.draws import DrawnRows, DrawRows, overwritten
from tdreplay_server.tables.leases import Drawn
from tdreplay_server.tables.limiters import Reserved, Supply, UnlimitedLimiter, Wait, made_limiter
from tdreplay_server.tables.rates import RowRate
from tdreplay_server.tables.samplers import Sampler, Totals, UniformSampler, made_sampler
from tdreplay_server.tables.selection import BatchQuery, Selection
from tdreplay_server.tables.trajectories.step_table import StepTable

__all__ = ["Sampling"]


class Sampling:
    """The sampler and the rate limiter of one table, and its limit of draws, as a `RowListener`.

    Attributes:
        steps: What is known of the episodes whose steps the rows are; None: they are none.
        sampler: Chooses the rows.
        consumption: Counts how often each row is drawn; None: it may be drawn any number of times.
        limiter: Decides who waits.
        updated: What became of all updates of priorities.
        rows_inserted: The rows that were inserted.
        rows_drawn: The rows that learners took in random batches.
        activity: What else is counted of the table's work.
        kept: As in `RowListener`.

    Args:
        config: What the table is made with.
        log: The rows.
    """

    def __init__(self, config: TableConfig, log: Callable[[], RowLog]) -> None:
        self._log = log
        self.steps = self._made_steps(config)
        self.sampler: Sampler = made_sampler(config.sampler) if self.steps is None else self.steps.sampler
        self.consumption = Consumption(self.sampler, config.max_times_sampled) if config.is_consuming else None
        supply = Supply.of if self.consumption is None else self.consumption.supply
        self.limiter = made_limiter(config, lambda: supply(log().ring))
        self.updated = Updated(0, 0)
        self.rows_inserted, self.rows_drawn, self.activity = RowRate(), RowRate(), Activity()
        self._uniform, self._counting = UniformSampler(), threading.Lock()
        self._counts = () if self.consumption is None else (self.consumption,)
        columns = [column for part in (self.sampler, *self._counts) for column in part.columns]
        self.kept = Kept(tuple(columns), (*self.sampler.values, *self.limiter.values))

    def _made_steps(self, config: TableConfig) -> StepTable | None:
        if not config.trajectories:
            return None
        return StepTable(config.trajectories, config.sampler, lambda: self._log().schema, self._read)

    @property
    def is_unlimited(self) -> bool:
        """Whether nobody waits, and nobody counts what is drawn."""
        return isinstance(self.limiter, UnlimitedLimiter)

    def check_query(self, query: BatchQuery) -> None:
        """Passes where such batches can be had, now or later.

        Raises:
            FailedPreconditionError: uniform batches are asked of a table whose rows leave when they were drawn.
        """
        if query.uniform and self.consumption is not None:
            raise FailedPreconditionError("uniform batches cannot be had of this table: its max_times_sampled counts every draw")

    def drawn(self, query: BatchQuery, generators: Sequence[np.random.Generator], ring: Ring) -> DrawnRows:
        """The rows of random batches, one batch for each generator. To be called under the table's shared lock.

        Raises:
            TooFewDrawsError: the rows cannot be drawn so often.
        """
        found = self._drawn_rows(query, generators, ring)
        self.activity.sampled_ages.look(found.batch(0), ring.write_count)
        return found

    def _drawn_rows(self, query: BatchQuery, generators: Sequence[np.random.Generator], ring: Ring) -> DrawnRows:
        if self.consumption is None:
            are_lost = overwritten if self.steps is None else partial(self.steps.are_lost, query.rule)
            return DrawnRows(self._drawing(query), query.rows, generators, ring, are_lost=are_lost)
        return DrawnRows(self.consumption.draw, query.rows, generators, ring, self.consumption.moment, self.consumption.give_back)

    def _drawing(self, query: BatchQuery) -> DrawRows:
        if self.steps is None:
            return self._uniform.draw if query.uniform else self.sampler.draw
        return self.steps.drawing(query.rule, uniform=query.uniform, counted=query.counted)

    def totals(self, query: BatchQuery, ring: Ring) -> Totals:
        """Among what random batches would be drawn now. To be called under the table's shared lock."""
        if self.steps is not None:
            return self.steps.totals(query.rule, ring, uniform=query.uniform) if ring.size else Totals.of(0)
        return (self._uniform if query.uniform else self.sampler).totals(ring)

    def _read(self, start: int, stop: int, field: str) -> Rows:
        return self._log().storage.rows(start, stop, field)

    def leased(self, rows: int, batches: int, wait: Wait, select: Callable[[int], tuple[Selection, DrawnRows]]) -> Drawn:
        """As many batches of `rows` rows as the limiter lets through, one at least and `batches` at most, each with its lease.

        Args:
            rows: The number of rows of a batch.
            batches: How many batches.
            wait: How long it may wait.
            select: Draws so many batches: what is to be read, and its rows.

        Raises:
            RateLimitedError: none can be drawn within the time.
        """
        while True:
            try:
                with self.limiter.sampling(rows, batches, wait) as reserved:
                    selection, drawn = select(reserved.batches)
                    return Drawn(selection, [_Lease(self, reserved, drawn, number) for number in range(reserved.batches)])
            except TooFewDrawsError as error:  # Rows were overwritten since the limiter looked: it waits for others.
                if time.monotonic() >= wait.until:
                    raise RateLimitedError(str(error)) from None

    def taken(self, reserved: Reserved, ids: RowIds, moment: int) -> None:
        """A learner took a batch with these rows. Those that were drawn often enough leave."""
        log, front = self._log(), 0
        with log.shared:
            if self.consumption is not None:
                self.consumption.taken(ids, moment)
                front = self.consumption.front(log.ring)
            self.limiter.taken(reserved)
        self.rows_drawn.add(len(ids))
        self.advance(front)

    def advance(self, front: int) -> None:
        """Takes the rows below `front` out of the ring: they have left."""
        log = self._log()
        if front > log.ring.oldest:
            log.advance(front)
        self.limiter.changed()

    def offer(self, ids: RowIds, moment: int) -> None:
        """Nobody took a batch with these rows. They stay reserved until the limiter hears that the batch was given back."""
        if self.consumption is not None:
            with self._log().shared:
                self.consumption.give_back(ids, moment)

    def counted(self, updated: Updated) -> Updated:
        """The same, after it was counted."""
        with self._counting:
            self.updated = Updated(self.updated.updated + updated.updated, self.updated.stale + updated.stale)
        return updated

    def opened(self, state: SlotState, ring: Ring) -> None:
        """As `RowListener.opened`."""
        if self.steps is not None:
            self.steps.opened(state, ring)
        self.sampler.opened(state, ring.buffer_size)
        for part in (*self._counts, self.limiter):
            part.opened(state, ring)

    def emptied(self, ring: Ring) -> None:
        """As `RowListener.emptied`."""
        if self.steps is not None:
            self.steps.opened(SlotState(self.kept, 1), ring)
        self.sampler.opened(SlotState(self.kept, 1), ring.buffer_size)  # It lets go of the files of the rows that are gone.
        for part in (*self._counts, self.limiter):
            part.emptied(ring)

    def check(self, insert: Insert, before: Sequence[Insert]) -> None:
        """As `RowListener.check`."""
        if self.steps is not None:
            self.steps.check(insert, before)

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """As `RowListener.written`."""
        for part in (self.sampler, *self._counts):
            part.written(ids, priorities)
        self.rows_inserted.add(len(ids))
        schema = self._log().schema
        self.activity.inserted_bytes += len(ids) * (0 if schema is None else schema.row_bytes)

    def lost(self, ids: range) -> None:
        """As `RowListener.lost`. The rows are as new ones whose priorities nobody gave, and that nobody drew."""
        for part in (self.sampler, *self._counts):
            part.written(ids, None)

    def inserted(self, ids: range) -> None:
        """As `RowListener.inserted`."""
        if self.steps is not None:
            self.steps.index.inserted(ids)
        for part in (self.sampler, *self._counts):
            part.inserted(ids)
        self.limiter.changed()

    def evicted(self, ids: range) -> None:
        """As `RowListener.evicted`."""
        for part in (self.sampler, *self._counts):
            part.evicted(ids)
        if self.steps is not None:
            self.steps.evicted(ids)
        self.limiter.changed()

    def closed(self) -> None:
        """As `RowListener.closed`: what comes now finds a state without rows."""
        self.opened(SlotState(self.kept, 1), Ring(1))


class _Lease:
    """The lease of one of the batches that were reserved together. Rows that were overwritten before they were read have others in their place."""

    def __init__(self, sampling: Sampling, reserved: Reserved, drawn: DrawnRows, number: int) -> None:
        self._sampling, self._reserved, self._drawn, self._number = sampling, reserved, drawn, number
        self._makes_room = False

    def make_room(self) -> None:
        self._makes_room = True
        self._sampling.limiter.promised(self._reserved)

    def taken(self) -> None:
        self._end_promise()
        self._sampling.taken(self._reserved, self._drawn.batch(self._number), self._drawn.moment)

    def offer(self) -> None:
        self._sampling.offer(self._drawn.batch(self._number), self._drawn.moment)

    def free(self) -> None:
        self._end_promise()
        self._sampling.limiter.given_back(self._reserved)

    def _end_promise(self) -> None:
        if self._makes_room:
            self._makes_room = False
            self._sampling.limiter.promised(self._reserved, -1)
