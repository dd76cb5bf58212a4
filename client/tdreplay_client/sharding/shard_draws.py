"""Rows of several shards, asked for at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tdreplay.errors import EmptyTableError, RateLimitedError, ReplayError, ServerUnavailableError
from tdreplay_client.reading.named_batches import BegunBatch, OneBatch
from tdreplay_client.sharding.drawing import Drawing, Given
from tdreplay_client.sharding.leased_rows import LeasedRows
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.totals import DrawKind, KnownTotals

__all__ = ["LIMITED_SECONDS", "ShardDraws"]

LIMITED_SECONDS = 0.1
"""How long one shard's rate limiter is waited for before the others are asked."""


@dataclass(eq=False)
class _Ask:
    """Rows that one shard is asked for.

    Attributes:
        shard: The shard.
        kind: Of what it draws them.
        one: What its batch is to be.
        share: How probable it is that a row comes from this shard.
        leases: Where its lease goes, if the rows are to be leased.
        began: When it was asked, as `time.monotonic` says it.
    """

    shard: Shard
    kind: DrawKind
    one: OneBatch
    share: float
    leases: list[LeasedRows] | None
    began: float = field(default_factory=time.monotonic)


class ShardDraws:
    """Asks shards for rows of a batch.

    Where calls are held open to all of them, one thread does it: it asks each, and then waits for one after the other. Else threads do, one for each.
    Rows that leave when they were drawn are leased: see `LeasedRows`. A shard that is alone gives whole batches, and leases none.

    Args:
        shards: The shards.
        totals: What they report, which is noted.
    """

    def __init__(self, shards: ShardSet, totals: KnownTotals) -> None:
        self._shards, self._totals = shards, totals

    def ask(self, drawing: Drawing, wanted: Iterable[tuple[Shard, int]], until: float) -> ReplayError | None:
        """Asks shards for so many rows each, all at once, and adds them to the batch, which notes who owes them no more.

        Gives the error of one of the shards, if not all gave some.

        Raises:
            ReplayError: a shard failed, for a reason that is not one of its rows, or one is lost and the buffer does not go on without it.
        """
        leases = drawing.leases if self._shards.config.max_times_sampled and len(drawing.shards) > 1 else None
        asks = [self._asking(drawing, shard, rows, until, leases) for shard, rows in wanted]
        found = self._answers(asks) if leases is None else [*self._each(asks).values()]
        errors = []
        for ask, outcome in zip(asks, found, strict=True):
            if isinstance(outcome, Given):
                drawing.given.append(outcome)
                drawing.owed.gave(ask.shard.number, ask.one.rows)
            else:
                drawing.owed.failed(ask.shard.number, refused=isinstance(outcome, RateLimitedError))
                errors.append(outcome)
        for error in errors:
            if not self._is_of_rows(error):
                raise error
        drawing.error = next((error for error in errors if not isinstance(error, ServerUnavailableError)), errors[0] if errors else None)
        return drawing.error

    def _is_of_rows(self, error: ReplayError) -> bool:
        """Whether other shards may give rows where one ended so."""
        return isinstance(error, (EmptyTableError, RateLimitedError)) or (isinstance(error, ServerUnavailableError) and self._shards.goes_on)

    def _asking(self, drawing: Drawing, shard: Shard, rows: int, until: float, leases: list[LeasedRows] | None) -> _Ask:
        seconds = self._seconds(until - time.monotonic(), alone=len(drawing.shards) == 1)
        one = OneBatch(drawing.query.asked, rows, drawing.draw_of(shard), seconds)
        return _Ask(shard, drawing.query.kind, one, drawing.shares.get(shard.number, 1.0), leases)

    def _seconds(self, left: float, *, alone: bool) -> float:
        """For how long a shard may wait for its rate limiter."""
        seconds = left if alone else min(left, LIMITED_SECONDS)
        return max(0.0, min(seconds, LOSS_SECONDS / 2) if self._shards.goes_on else seconds)  # One that may be lost has to answer in time.

    def _answers(self, asks: Sequence[_Ask]) -> list[Given | ReplayError]:
        """What each shard gives, in order, once all have answered."""
        begun: dict[_Ask, BegunBatch] = {}
        found: dict[_Ask, Given | ReplayError | None] = dict.fromkeys(asks)
        try:
            for ask in asks:
                batch = ask.shard.reads.begin(ask.one)
                if batch is not None:
                    begun[ask] = batch
            found |= self._each([ask for ask in asks if ask not in begun])
            for ask in list(begun):
                found[ask] = self._taken(ask, begun.pop(ask))
        finally:
            for batch in begun.values():
                batch.close()
        found |= self._each([ask for ask, outcome in found.items() if outcome is None])
        return [outcome for outcome in found.values() if outcome is not None]

    def _each(self, asks: Sequence[_Ask]) -> dict[_Ask, Given | ReplayError]:
        """What these shards give, each of which is asked in a thread of its own."""
        of_shard = {ask.shard: ask for ask in asks}
        return dict(zip(asks, self._shards.each(lambda shard: self._drawn(of_shard[shard]), of_shard), strict=True)) if asks else {}

    def _drawn(self, ask: _Ask) -> Given | ReplayError:
        try:
            if ask.leases is None:
                return self._given(ask, ask.shard.asked(lambda table: table.drawn(ask.one)))
            leased = ask.shard.asked(lambda table: table.leased(ask.one))
            ask.leases.append(leased)
            return self._given(ask, leased.batch)
        except ReplayError as error:
            return self._refused(ask, error)

    def _taken(self, ask: _Ask, begun: BegunBatch) -> Given | ReplayError | None:
        """What comes over the call that is held open. None: the call failed, and the shard is to be asked anew."""
        try:
            batch = ask.shard.asked(lambda _: begun.take())
        except ReplayError as error:
            return self._refused(ask, error)
        return None if batch is None else self._given(ask, batch)

    def _given(self, ask: _Ask, batch: ShardBatch) -> Given:
        if batch.totals is not None:
            self._totals.note(ask.kind, ask.shard.number, batch.totals, ask.began)
        return Given(ask.shard, batch, ask.one.rows, share=ask.share)

    def _refused(self, ask: _Ask, error: ReplayError) -> ReplayError:
        if isinstance(error, EmptyTableError):
            self._totals.forget(ask.shard.number)
        return error
