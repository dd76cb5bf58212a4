"""Random batches of a buffer over several shards, each drawn when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from tensordict import TensorDict

from tdreplay.errors import EmptyTableError, RateLimitedError, ReplayError, ServerUnavailableError
from tdreplay.rate_limiters import Queue, SamplesPerInsert
from tdreplay.table_config import check_drawable
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.sharding.draw_query import DrawQuery, generator_of
from tdreplay_client.sharding.drawing import Drawing
from tdreplay_client.sharding.owed_rows import OwedRows
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_draws import LIMITED_SECONDS, ShardDraws
from tdreplay_client.sharding.shard_set import ShardSet, none_there, too_few
from tdreplay_client.sharding.shares import part_of
from tdreplay_client.sharding.totals import KnownTotals, Shares
from tdreplay_client.transport.retry_budget import jittered

__all__ = ["Draws"]

PAUSE_SECONDS = 0.05
"""How long is waited before shards without rows are asked again."""
HOLD_SECONDS = 1.0
"""How long a batch holds rows while others are missing, at most. Then it gives them back, and begins anew."""


class Draws:
    """Draws random batches of all shards together: how many rows each gives is a multinomial draw by their totals, and inside each draws itself.

    Args:
        shards: The shards.
        totals: What they report, for all who draw from them.
        transfer: Brings batches to the device.
        timeout: The most seconds for which rows, a rate limiter or a lost shard are waited for.
    """

    def __init__(self, shards: ShardSet, totals: KnownTotals, transfer: DeviceTransfer, timeout: float) -> None:
        self._shards, self._totals, self._transfer, self._timeout = shards, totals, transfer, timeout
        self._asking = ShardDraws(shards, totals)

    def batch(self, query: DrawQuery) -> TensorDict:
        """A batch. Errors: as `BaseReplayBuffer.sample_batch`, and those of a buffer that is remote."""
        batch, drawing = self.leased_batch(query)
        drawing.end_leases(taken=True)
        return batch

    def leased_batch(self, query: DrawQuery) -> tuple[TensorDict, Drawing]:
        """A batch, and how it was drawn: rows that leave do so when its leases end. Errors: as `batch`; then nobody drew anything."""
        if self._shards.config.max_times_sampled or isinstance(self._shards.config.rate_limiter, Queue):
            check_drawable(self._shards.whole, query.rows)
        while True:
            drawing = Drawing(query, generator_of(query.draw), self._shards.now, OwedRows(self._most_at_once(query.rows)))
            try:
                self._fill(drawing, time.monotonic() + self._timeout)
                return drawing.batch(self._transfer, self._lost_of(drawing)), drawing
            except ServerUnavailableError:
                drawing.end_leases(taken=False)
                if self._shards.now is drawing.shards:
                    raise
            except BaseException:
                drawing.end_leases(taken=False)
                raise

    def _fill(self, drawing: Drawing, until: float) -> None:
        """Draws until no row is missing."""
        held_until = time.monotonic() + jittered(HOLD_SECONDS)
        while drawing.missing:
            if until > time.monotonic() >= held_until and drawing.leases:  # Two who each hold a part of what the other one needs would wait for ever.
                drawing.begin_anew()
                time.sleep(jittered(PAUSE_SECONDS))
            if not drawing.leases:
                held_until = time.monotonic() + jittered(HOLD_SECONDS)
            error = self._round(drawing, until)
            drawing.rounds += 1
            if error is None and (time.monotonic() < until or drawing.error is None):
                continue  # It is known better by now which shard has rows.
            error = error or drawing.error
            if error is not None and (time.monotonic() >= until or not self._is_waited_for(error, drawing.query)):
                raise error
            if not isinstance(error, RateLimitedError):  # There the wait was the shard's.
                time.sleep(PAUSE_SECONDS)

    def _lost_of(self, drawing: Drawing) -> int | None:
        """How many shards were not drawn from, where a batch says it."""
        return sum(not shard.is_there for shard in drawing.shards) if self._shards.goes_on else None

    @property
    def _rows_leave(self) -> bool:
        """Whether rows leave when they were drawn often enough. Then each batch of somebody else's changes what is there, too."""
        return self._shards.config.max_times_sampled > 0

    def _is_waited_for(self, error: ReplayError, query: DrawQuery) -> bool:
        """Whether a batch that ended so is tried again, as long as there is time."""
        if isinstance(error, EmptyTableError):
            return query.wait
        return isinstance(error, RateLimitedError) or self._shards.goes_on

    def _round(self, drawing: Drawing, until: float) -> ReplayError | None:
        """Asks shards for the rows that are missing. Gives why they do not come; None: some came, or it is known by now which shard has some."""
        there = [shard for shard in drawing.shards if shard.is_there or not self._shards.goes_on]
        if not there:
            drawing.shards = self._shards.now
            return ServerUnavailableError("no shard of the buffer is there")
        if len(drawing.shards) == 1:
            return self._asking.ask(drawing, [(there[0], drawing.missing)], until)
        if not drawing.owed:
            error = self._share_out(drawing, there, until)
            if error is not None or not drawing.owed:
                return error
        owed = drawing.owed.next()
        error = self._asking.ask(drawing, [(shard, owed[shard.number]) for shard in drawing.shards if shard.number in owed], until)
        return error if isinstance(error, RateLimitedError) else None

    def _share_out(self, drawing: Drawing, there: Sequence[Shard], until: float) -> ReplayError | None:
        """Draws how many of the missing rows each shard is to give. Gives why none can be had; None: it is known, or is known better next time."""
        try:
            whole = self._known_shares(drawing.query, there)
        except ServerUnavailableError as lost:
            if not self._shards.goes_on:
                raise
            return lost
        there = [shard for shard in there if shard.number in whole.numbers]
        if self._rows_leave and whole.rows < drawing.missing and not self._may_begin(drawing, whole):
            time.sleep(PAUSE_SECONDS)
            return RateLimitedError(f"sampling needs {drawing.query.rows} rows, {drawing.query.rows - drawing.missing + whole.rows} are there")
        if not whole.rows:
            return self._none_stored(drawing, there, until)
        least, stored = self._shards.least_rows(len(there)), self._stored(whole)
        if stored < least:
            time.sleep(PAUSE_SECONDS)
            return too_few(least, stored)
        shares = whole.only(drawing.owed.open(whole.drawable))
        rows = min(drawing.missing, shares.rows) if self._rows_leave else drawing.missing
        drawing.share_out(rows, shares, whole, once=self._rows_leave)
        return None

    def _may_begin(self, drawing: Drawing, whole: Shares) -> bool:
        """Whether a batch leases the rows that are there, fewer than it needs: whoever inserts the others may wait until these make room."""
        waits = isinstance(self._shards.config.rate_limiter, (Queue, SamplesPerInsert))
        return waits and whole.rows > 0 and time.monotonic() - drawing.began >= LIMITED_SECONDS

    def _stored(self, whole: Shares) -> int:
        """How many rows are stored. Where each of them can be drawn, any number of times, those are the ones among which is drawn."""
        return self._totals.size(whole.numbers) if self._says_size else whole.rows

    @property
    def _says_size(self) -> bool:
        """Whether shards have to be asked how many rows they have: not each can be drawn, or can be once."""
        return self._rows_leave or bool(self._shards.config.trajectories)

    def _most_at_once(self, rows: int) -> int:
        """How many rows a shard is asked for at once. A balance that may move by fewer is debited in parts, also for rows that do not come then."""
        limiter = self._shards.config.rate_limiter
        return max(1, min(rows, int(limiter.error_buffer))) if isinstance(limiter, SamplesPerInsert) else rows

    def _none_stored(self, drawing: Drawing, there: Sequence[Shard], until: float) -> ReplayError | None:
        """What it means that no shard has a row: once all were asked at this moment, one of them says it. It is an error, or there is a wait."""
        drawing.is_sure = not drawing.is_sure
        if not drawing.is_sure:
            error = self._asking.ask(drawing, [(there[0], min(drawing.missing, part_of(drawing.query.rows, 0, len(there))))], until)
            drawing.given.clear()  # Of a row that came just now: the others are asked, too, whether they have some.
            return error
        for shard in there:
            self._totals.forget(shard.number)
        return None

    def _known_shares(self, query: DrawQuery, there: Sequence[Shard]) -> Shares:
        """The shares of these shards, by totals that are fresh. Those that are lost have none.

        Raises:
            ServerUnavailableError: none of them answers.
        """
        numbers = [shard.number for shard in there]
        is_short = self._says_size and self._totals.size(numbers) < self._shards.least_rows(len(there))
        stale = set(numbers) if self._rows_leave or is_short else self._totals.stale(query.kind, numbers)
        asked = [shard for shard in there if shard.number in stale]
        found = self._shards.tried(partial(self._ask_totals, query, counted=self._rows_leave), asked)
        lost = {shard.number for shard, error in zip(asked, found, strict=True) if error is not None}
        if (lost and not self._shards.goes_on) or len(lost) == len(there):
            raise none_there(found)
        return self._totals.shares(query.kind, [number for number in numbers if number not in lost])

    def _ask_totals(self, query: DrawQuery, shard: Shard, *, counted: bool) -> None:
        asked = time.monotonic()
        found = shard.asked(lambda table: table.totals_now(uniform=query.uniform, view=query.view, counted=counted))
        self._totals.note(query.kind, shard.number, found.totals, asked)
        self._totals.note_size(shard.number, found.size)
