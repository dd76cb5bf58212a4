"""A rate limiter that lets calls wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

import numpy as np

from tdreplay.errors import InvalidArgumentError
from tdreplay.rate_limiters import Queue
from tdreplay.table_config import TableConfig, check_drawable
from tdreplay_server.durability.slot_state import SlotState, StateValue
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.limiters import reasons
from tdreplay_server.tables.limiters.limiter import Reserved, Supply, Wait, WaitState
from tdreplay_server.tables.limiters.line import Line, Visitor
from tdreplay_server.tables.limiters.rule import Counts, rule_of

__all__ = ["Limited"]

ROWS_TAKEN = StateValue("rows_taken", np.int64)
"""The rows that learners took since the table was empty."""

BEGAN = StateValue("limiter_began", np.int64)
"""One more than the rows that had been inserted before the limiter began to count; 0: it did not begin."""


class Limited:
    """Applies the rule of a rate limiter, and lets batches wait for rows.

    - Rows count as inserted when they are in the ring. Until then they count for inserts alone, so these do not overtake each other.
    - Batches are reserved before they are drawn. What is reserved counts for other batches, and for inserts only when it is taken, or promised.
    - In a queue whose rows are drawn once, a row that was overwritten is not in the queue any more. So it counts as never inserted. Inserts wait
      rather than overwrite a row that was not drawn, unless a batch waits that only they can help.

    Args:
        config: The settings of the table.
        supply: What the table has to give now. It is called with a mutex held, from any thread: it must be quick, and take no lock of the table.
    """

    values: Sequence[StateValue] = (ROWS_TAKEN, BEGAN)

    def __init__(self, config: TableConfig, supply: Callable[[], Supply]) -> None:
        self._rule, self._config, self._supply = rule_of(config.rate_limiter), config, supply
        self._keeps_rows = isinstance(config.rate_limiter, Queue) and config.max_times_sampled == 1
        self._mutex = threading.Lock()
        self._inserts = Line(self._mutex, self._grant_insert, self._missing_rows, self._let_in)
        self._samples = Line(self._mutex, self._grant_batches, self._missing_batch, self._let_in)
        self._pending: dict[int, int] = {}
        self._generation = self._taken = self._reserved = self._promised = 0
        self._before: int | None = None  # None: there was no row yet.
        self._kept_taken = np.zeros((), np.int64)
        self._closed = False

    # -- the table ----------------------------------------------------------------------------------------------------------------------------

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Goes on counting, or begins to. What was reserved counts for nothing."""
        with self._mutex:
            began = state.values[BEGAN.name]
            if not began:
                began[...] = ring.insert_count + 1
            self._kept_taken = state.values[ROWS_TAKEN.name]
            self._before, self._taken = int(began) - 1, int(self._kept_taken)
            self._generation += 1
            self._reserved = self._promised = 0
            self._let_in()

    def emptied(self, ring: Ring) -> None:
        """Counts from zero."""
        with self._mutex:
            self._config = self._config.resized(ring.buffer_size)
            self._generation += 1
            self._before, self._kept_taken = None, np.zeros((), np.int64)
            self._taken = self._reserved = self._promised = 0
            self._let_in()

    def changed(self) -> None:
        """Lets those in who may go now."""
        with self._mutex:
            self._let_in()

    def closed(self) -> None:
        """Lets everybody in, from now on."""
        with self._mutex:
            self._closed = True
            self._let_in()

    def let_go(self) -> None:
        """Forgets what this thread waits for, and what it was about to insert."""
        thread = threading.get_ident()
        with self._mutex:
            for line in (self._inserts, self._samples):
                for visitor in line.waiting_in(thread):
                    line.leave(visitor)
            self._pending.pop(thread, None)
            self._let_in()

    # -- inserts ------------------------------------------------------------------------------------------------------------------------------

    def inserting(self, rows: int, wait: Wait) -> _Inserting:
        """As `RateLimiter.inserting`."""
        return _Inserting(self, rows, wait)

    def begin_insert(self, rows: int, wait: Wait) -> None:
        """Waits until rows may be inserted, which count as inserted then until `end_insert`. Errors: as `inserting`."""
        with self._mutex:
            most = self._rule.insert_rows(self._counts())
        if rows > most:
            raise InvalidArgumentError(reasons.never_inserted(self._config, self._rule, rows, most))
        try:
            self._inserts.pass_through(Visitor(rows, 1, wait))
        except BaseException:
            self.let_go()
            raise

    def end_insert(self) -> None:
        """What this thread was about to insert is in the table, or is not inserted."""
        with self._mutex:
            self._pending.pop(threading.get_ident(), None)
            self._let_in()

    def _grant_insert(self, visitor: Visitor) -> None:
        if self._closed or (self._rule.may_insert(self._with_pending(), visitor.rows) and self._has_room(visitor.rows)):
            self._pending[visitor.thread] = visitor.rows
            visitor.granted = 1

    def _has_room(self, rows: int) -> bool:
        """Whether so many rows overwrite none that is to be drawn, or have to."""
        if not self._keeps_rows or (self._samples and not self._reserved and not self._pending):
            return True
        return rows + sum(self._pending.values()) <= self._supply().free

    # -- batches ------------------------------------------------------------------------------------------------------------------------------

    def sampling(self, rows: int, batches: int, wait: Wait) -> _Sampling:
        """As `RateLimiter.sampling`."""
        return _Sampling(self, rows, batches, wait)

    def reserve(self, rows: int, batches: int, wait: Wait) -> Reserved:
        """Waits until there is a batch, and reserves up to so many of them. Errors: as `sampling`."""
        check_drawable(self._config, rows)
        if rows > self._rule.batch_rows:
            return self._debited_in_parts(rows, wait)
        return self._reserved_whole(rows, batches, wait)

    def _debited_in_parts(self, rows: int, wait: Wait) -> Reserved:
        """Waits for a batch that is larger than the balance may ever move. It is debited in parts, as inserts allow them, before it is drawn.

        So the balance is inside its bounds at every moment. What was debited of a batch that does not come in time, or is not taken, stays so.
        """
        part = max(1, int(self._rule.batch_rows / 2))
        for done in range(0, rows, part):
            self.taken(self._reserved_whole(min(part, rows - done), 1, wait))
        return Reserved(1, 0, self._generation)

    def _reserved_whole(self, rows: int, batches: int, wait: Wait) -> Reserved:
        visitor = Visitor(rows, batches, wait)
        try:
            self._samples.pass_through(visitor)
            return Reserved(visitor.granted, rows, visitor.generation)
        except BaseException:
            self._abandon(visitor)
            raise

    def _abandon(self, visitor: Visitor) -> None:
        self.let_go()
        if visitor.granted:
            self.given_back(Reserved(visitor.granted, visitor.rows, visitor.generation), visitor.granted)

    def _grant_batches(self, visitor: Visitor) -> None:
        batches = visitor.most if self._closed else self._rule.batches(self._counts(), visitor.rows, visitor.most)
        visitor.generation = self._generation
        # Two steps that no interrupt comes between: neither calls anything.
        self._reserved += batches * visitor.rows
        visitor.granted = batches

    def taken(self, reserved: Reserved, batches: int = 1) -> None:
        """Debits the rows."""
        with self._mutex:
            if reserved.generation == self._generation:
                self._taken += reserved.rows * batches
                self._reserved -= reserved.rows * batches
                self._kept_taken[...] = self._taken
            self._let_in()

    def given_back(self, reserved: Reserved, batches: int = 1) -> None:
        """Lets others have the batches."""
        with self._mutex:
            if reserved.generation == self._generation:
                self._reserved -= reserved.rows * batches
            self._let_in()

    def promised(self, reserved: Reserved, batches: int = 1) -> None:
        """Lets inserts in as if these batches were taken; below 0: not any more."""
        with self._mutex:
            if reserved.generation == self._generation:
                self._promised += reserved.rows * batches
            self._let_in()

    # -- counts -------------------------------------------------------------------------------------------------------------------------------

    def _let_in(self) -> None:
        """Lets those in who may go, on both sides. Batches first: an insert that would overwrite rows has to know whether one waits."""
        if self._samples:
            self._samples.let_in()
        if self._inserts:
            self._inserts.let_in()

    def _counts(self) -> Counts:
        supply = self._supply()
        inserted = supply.draws + self._taken if self._keeps_rows else supply.inserted - self._before if self._before is not None else 0
        return Counts(inserted, self._taken, self._reserved, supply.size, supply.draws)

    def _with_pending(self) -> Counts:
        """What counts for inserts."""
        counts = self._counts()
        return counts._replace(inserted=counts.inserted + sum(self._pending.values()), taken=counts.taken + self._promised)

    def insert_room(self) -> int | None:
        """How many rows could be inserted now without waiting for draws; None: any number."""
        with self._mutex:
            return self._rule.insert_room(self._with_pending())

    @property
    def rows_taken(self) -> int:
        """The rows that learners took since the table was empty."""
        return self._taken

    @property
    def rows_reserved(self) -> int:
        """The rows of batches that are reserved: neither taken nor given back yet."""
        return self._reserved

    def waits(self) -> tuple[WaitState, WaitState]:
        """How inserts wait, and how batches do."""
        with self._mutex:
            return self._inserts.state(), self._samples.state()

    def _missing_rows(self, visitor: Visitor) -> str:
        counts = self._with_pending()
        if not self._rule.may_insert(counts, visitor.rows):
            return reasons.too_far_ahead(self._config.rate_limiter, self._rule, counts, visitor.rows) + self._stuck()
        if not self._has_room(visitor.rows):
            return reasons.no_free_slots(self._config.buffer_size, self._supply().free, visitor.rows) + self._stuck()
        return f"an insert of {visitor.rows} rows comes after inserts that wait longer"

    def _missing_batch(self, visitor: Visitor) -> str:
        counts = self._counts()
        if self._rule.may_sample(counts, visitor.rows):
            return f"a batch of {visitor.rows} rows comes after batches that wait longer"
        return reasons.too_few_rows(self._rule, counts, visitor.rows) + self._stuck()

    def _stuck(self) -> str:
        """What to add where both sides wait for each other, and nobody is on the way who may change that."""
        insert, batch = self._inserts.first, self._samples.first
        if insert is None or batch is None or self._reserved or self._pending:
            return ""
        return reasons.stuck(self._config.rate_limiter, self._rule, insert.rows, batch.rows)


class _Inserting:
    """For ``with``: rows that are about to be inserted."""

    __slots__ = ("_limiter", "_rows", "_wait")

    def __init__(self, limiter: Limited, rows: int, wait: Wait) -> None:
        self._limiter, self._rows, self._wait = limiter, rows, wait

    def __enter__(self) -> None:
        self._limiter.begin_insert(self._rows, self._wait)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._limiter.end_insert()


class _Sampling:
    """For ``with``: batches that are about to be drawn."""

    __slots__ = ("_batches", "_limiter", "_reserved", "_rows", "_wait")

    def __init__(self, limiter: Limited, rows: int, batches: int, wait: Wait) -> None:
        self._limiter, self._rows, self._batches, self._wait = limiter, rows, batches, wait

    def __enter__(self) -> Reserved:
        self._reserved = self._limiter.reserve(self._rows, self._batches, self._wait)
        return self._reserved

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self._limiter.given_back(self._reserved, self._reserved.batches)
