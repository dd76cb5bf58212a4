"""Random batches of a buffer over several shards, each drawn when it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from tensordict import TensorDict

from tdreplay.errors import EmptyTableError, RateLimitedError, ReplayError, ServerUnavailableError
from tdreplay.limits import MAX_SHARDS
from tdreplay.rate_limiters import Unlimited
from tdreplay.samplers import Prioritized, Uniform
from tdreplay.seeds import derived_seed
from tdreplay.system_fields import MIN_PROBABILITY, TABLE_SIZE
from tdreplay.views import TableView
from tdreplay_client.reading.device_transfer import DeviceTransfer
from tdreplay_client.reading.single_batches import Draw
from tdreplay_client.sharding.joining import Part, joined
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_batches import ShardBatch
from tdreplay_client.sharding.shard_set import ShardSet, none_there
from tdreplay_client.sharding.shares import part_of
from tdreplay_client.sharding.spare_rows import SpareRows
from tdreplay_client.sharding.totals import DrawKind, KnownTotals, Shares

__all__ = ["DrawQuery", "Draws", "generator_of"]

PAUSE_SECONDS = 0.05
"""How long is waited before shards without rows are asked again."""
LIMITED_SECONDS = 0.25
"""How long one shard's rate limiter is waited for before the others are asked again, where rows leave."""
_own = threading.local()


@dataclass(frozen=True)
class DrawQuery:
    """What a random batch is to be.

    Attributes:
        rows: Its number of rows.
        uniform: Whether all rows are equally probable, whatever the sampler is.
        view: What is made of the windows around them; None: the rows come alone.
        draw: Its seed and its number among the batches of that seed; None: it is drawn by chance.
        standing: Whether such a batch is likely to be asked for again.
        wait: Whether an empty buffer is waited for.
    """

    rows: int
    uniform: bool = False
    view: TableView | None = None
    draw: Draw = None
    standing: bool = False
    wait: bool = False

    @property
    def kind(self) -> DrawKind:
        """Of what it is drawn."""
        return DrawKind(self.uniform, None if self.view is None else self.view.windows)


def generator_of(draw: Draw) -> np.random.Generator:
    """What decides how many rows each shard gives, and in which order they come: of the batch of that number of a seed, or by chance."""
    if draw is not None:
        return np.random.Generator(np.random.Philox(key=np.array(draw, np.uint64)))
    if not hasattr(_own, "generator"):
        _own.generator = np.random.default_rng()
    found: np.random.Generator = _own.generator
    return found


class _Given(NamedTuple):
    """Rows of a batch of a shard: so many, from `start` on."""

    shard: Shard
    batch: ShardBatch
    rows: int
    start: int = 0


@dataclass
class _Drawing:
    """A batch while it is drawn.

    Attributes:
        query: What it is to be.
        generator: Decides what is left to chance.
        shards: Those of the buffer, by place.
        given: The batches that came, with their shards, and how many rows of each are used.
        shares: How probable it is that a row comes from each shard, by number.
        rows: Among how many was drawn.
        min_probability: The smallest probability above 0 that one of them had.
        rounds: How often shards were asked.
        is_sure: Whether no shard had a row, and all are asked anew for that reason.
        error: Why a shard gave no rows when it was asked last; None: each gave some.
    """

    query: DrawQuery
    generator: np.random.Generator
    shards: Sequence[Shard]
    given: list[_Given] = field(default_factory=list)
    shares: dict[int, float] = field(default_factory=dict)
    rows: int = 0
    min_probability: float = 0.0
    rounds: int = 0
    is_sure: bool = False
    error: ReplayError | None = None

    @property
    def missing(self) -> int:
        """The rows that did not come yet."""
        return self.query.rows - sum(one.rows for one in self.given)

    def share_of(self, one: _Given) -> float:
        """How probable it was that a row came from the shard of these; 1 where there is no other."""
        return self.shares.get(one.shard.number, 1.0)

    def draw_of(self, shard: Shard) -> Draw:
        """The seed and the number with which a shard draws. Those that are asked twice do not draw the same rows again."""
        if self.query.draw is None or len(self.shards) == 1:
            return self.query.draw
        seed, number = self.query.draw
        return derived_seed(seed, shard.number + self.rounds * MAX_SHARDS), number


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
        self._spare = SpareRows()
        self._keeping = threading.Lock()
        self._kept: list[tuple[DrawKind, _Given]] = []  # Rows that have left, of batches that were not whole in time.

    def batch(self, query: DrawQuery) -> TensorDict:
        """A batch. Errors: as `BaseReplayBuffer.sample_batch`, and those of a buffer that is remote."""
        while True:
            drawing = _Drawing(query, generator_of(query.draw), self._shards.now)
            try:
                self._take_kept(drawing)
                self._fill(drawing, time.monotonic() + self._timeout)
                return self._joined(drawing)
            except ServerUnavailableError:
                self._keep(drawing)
                if self._shards.now is drawing.shards:
                    raise
            except BaseException:
                self._keep(drawing)
                raise

    def _fill(self, drawing: _Drawing, until: float) -> None:
        """Draws until no row is missing."""
        while drawing.missing:
            error = self._round(drawing, until)
            drawing.rounds += 1
            if error is None and (time.monotonic() < until or drawing.error is None):
                continue  # It is known better by now which shard has rows.
            error = error or drawing.error
            if error is not None and (time.monotonic() >= until or not self._is_waited_for(error, drawing.query)):
                raise error
            if not isinstance(error, RateLimitedError):  # There the wait was the shard's.
                time.sleep(PAUSE_SECONDS)

    def _keep(self, drawing: _Drawing) -> None:
        """Keeps the rows of a batch that did not become whole, where no other batch gets them any more."""
        if drawing.given and self._shards.config.max_times_sampled:
            with self._keeping:
                self._kept += [(drawing.query.kind, one) for one in drawing.given]

    def _take_kept(self, drawing: _Drawing) -> None:
        """Begins a batch with the rows that were kept."""
        if not self._kept:
            return
        with self._keeping:
            kept, self._kept = self._kept, []
            for kind, one in kept:
                taken = min(one.rows, drawing.missing) if kind == drawing.query.kind else 0
                if taken:
                    drawing.given.append(one._replace(rows=taken))
                if taken < one.rows:
                    self._kept.append((kind, one._replace(start=one.start + taken, rows=one.rows - taken)))

    def forget(self) -> None:
        """Forgets the rows that were kept: they are no rows of the tables any more."""
        with self._keeping:
            self._kept.clear()

    def _is_waited_for(self, error: ReplayError, query: DrawQuery) -> bool:
        """Whether a batch that ended so is tried again, as long as there is time."""
        if isinstance(error, EmptyTableError):
            return query.wait
        return isinstance(error, RateLimitedError) or self._shards.goes_on

    def _round(self, drawing: _Drawing, until: float) -> ReplayError | None:
        """Asks shards for the rows that are missing. Gives why they do not come; None: some came, or it is known by now which shard has some."""
        there = [shard for shard in drawing.shards if shard.is_there or not self._shards.goes_on]
        if not there:
            drawing.shards = self._shards.now
            return ServerUnavailableError("no shard of the buffer is there")
        if len(drawing.shards) == 1:
            return self._asked(drawing, there, [drawing.missing], until)
        try:
            shares = self._known_shares(drawing.query, there)
        except ServerUnavailableError as lost:
            if not self._shards.goes_on:
                raise
            return lost
        there = [shard for shard in there if shard.number in shares.numbers]
        rows_leave = self._shards.config.max_times_sampled > 0
        if rows_leave and shares.rows < drawing.missing:
            time.sleep(PAUSE_SECONDS)
            return RateLimitedError(f"sampling needs {drawing.missing} rows, {shares.rows} are there")
        if not shares.rows:
            return self._none_stored(drawing, there, until)
        chosen = (shares.counts_once if rows_leave else shares.counts)(drawing.missing, drawing.generator)
        drawing.shares |= shares.of
        drawing.rows, drawing.min_probability = shares.rows, shares.min_probability
        some = [(shard, int(count)) for shard, count in zip(there, chosen, strict=True) if count]
        error = self._asked(drawing, [shard for shard, _ in some], [count for _, count in some], until)
        return error if isinstance(error, RateLimitedError) else None

    def _none_stored(self, drawing: _Drawing, there: Sequence[Shard], until: float) -> ReplayError | None:
        """What it means that no shard has a row: once all were asked at this moment, one of them says it. It is an error, or there is a wait."""
        drawing.is_sure = not drawing.is_sure
        if not drawing.is_sure:
            error = self._asked(drawing, there[:1], [min(drawing.missing, part_of(drawing.query.rows, 0, len(there)))], until)
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
        rows_leave = self._shards.config.max_times_sampled > 0  # Then each batch of somebody else's changes what is there, too.
        stale = set(numbers) if rows_leave else self._totals.stale(query.kind, numbers)
        asked = [shard for shard in there if shard.number in stale]
        found = self._shards.tried(partial(self._ask_totals, query, counted=rows_leave), asked)
        lost = {shard.number for shard, error in zip(asked, found, strict=True) if error is not None}
        if (lost and not self._shards.goes_on) or len(lost) == len(there):
            raise none_there(found)
        return self._totals.shares(query.kind, [number for number in numbers if number not in lost])

    def _ask_totals(self, query: DrawQuery, shard: Shard, *, counted: bool) -> None:
        asked = time.monotonic()
        totals = shard.asked(lambda table: table.totals(uniform=query.uniform, view=query.view, counted=counted))
        self._totals.note(query.kind, shard.number, totals, asked)

    def _asked(self, drawing: _Drawing, shards: Sequence[Shard], counts: Sequence[int], until: float) -> ReplayError | None:
        """Asks shards for so many rows each, all at once. Gives the error of one of them, if not all gave some."""
        count_of = dict(zip(shards, counts, strict=True))
        found = self._shards.each(lambda shard: self._drawn(drawing, shard, count_of[shard], until), shards)
        errors = [outcome for outcome in found if isinstance(outcome, ReplayError)]
        drawing.given += [outcome for outcome in found if isinstance(outcome, _Given)]
        drawing.error = next((error for error in errors if not isinstance(error, ServerUnavailableError)), errors[0] if errors else None)
        return drawing.error

    def _drawn(self, drawing: _Drawing, shard: Shard, rows: int, until: float) -> _Given | ReplayError:
        """Rows of one shard. Where it has none, does not let them out or is lost, its error: others may have some."""
        query, asked, alone = drawing.query, time.monotonic(), len(drawing.shards) == 1
        seconds = self._seconds(until - asked, alone=alone)
        key, spares = (shard.number, query.rows, query.kind), not alone and self._can_spare
        size = self._spare.size(key, rows) if spares and query.standing else rows
        standing = query.standing and (alone or size > rows)
        try:
            batch = shard.asked(
                lambda table: table.drawn(size, drawing.draw_of(shard), uniform=query.uniform, view=query.view, seconds=seconds, standing=standing)
            )
        except (EmptyTableError, RateLimitedError) as error:
            if isinstance(error, EmptyTableError):
                self._totals.forget(shard.number)
            return error
        except ServerUnavailableError as error:
            if not self._shards.goes_on:
                raise
            return error
        if batch.totals is not None:
            self._totals.note(query.kind, shard.number, batch.totals, asked)
        if spares:
            self._spare.note(key, batch.nbytes // size)
        return _Given(shard, batch, rows)

    def _seconds(self, left: float, *, alone: bool) -> float:
        """For how long a shard may wait for its rate limiter."""
        rows_leave = not alone and self._shards.config.max_times_sampled > 0
        seconds = min(left, LIMITED_SECONDS) if rows_leave else left
        return max(0.0, min(seconds, LOSS_SECONDS / 2) if self._shards.goes_on else seconds)  # One that may be lost has to answer in time.

    @property
    def _can_spare(self) -> bool:
        """Whether rows may be drawn that are not used: nobody counts them."""
        config = self._shards.config
        return not config.max_times_sampled and isinstance(config.rate_limiter, Unlimited) and isinstance(config.sampler, (Uniform, Prioritized))

    def _joined(self, drawing: _Drawing) -> TensorDict:
        shards, lost = drawing.shards, None
        if self._shards.goes_on:
            lost = sum(not shard.is_there for shard in shards)
        transfer, places = self._transfer.for_view(drawing.query.view), {shard: place for place, shard in enumerate(shards)}
        parts = [
            Part(one.batch, one.shard.number, places.get(one.shard, 0), one.start, one.start + one.rows, drawing.share_of(one))
            for one in drawing.given
        ]
        if len(shards) == 1:
            return joined(parts, 1, None, transfer, None, lost)
        order = drawing.generator.permutation(drawing.query.rows)
        drawn = {TABLE_SIZE.name: drawing.rows, MIN_PROBABILITY.name: drawing.min_probability}
        return joined(parts, len(shards), order, transfer, drawn, lost)
