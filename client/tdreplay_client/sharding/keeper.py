"""Keeps the supplies of a stream: in a thread, away from the batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from tdreplay.errors import ClosedError, DeadlineError, EmptyTableError, OverloadedError, ReplayError, ServerUnavailableError
from tdreplay.priorities import Updated
from tdreplay.shard_ids import local_row_ids, shard_numbers
from tdreplay_client.sharding.priority_updates import check_shard_numbers
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.shard_set import ShardSet, too_few
from tdreplay_client.sharding.supply import NOTHING, Supply, add_up

__all__ = ["FRESH_SECONDS", "Keeper"]

FRESH_SECONDS = 0.1
"""How old what is known of a shard's totals may be while batches are taken."""


class Keeper:
    """The supplies of a stream, one for each shard: it asks shards of which nothing came for their totals, opens and ends their streams.

    Attributes:
        supplies: By place. A new tuple where shards joined or left.
        lost: How many shards did not answer when they were last asked.

    Args:
        shards: The shards.
        streams: Asks shards of what they would draw, and opens their streams.
    """

    def __init__(self, shards: ShardSet, streams: PullStreams) -> None:
        self._shards, self._streams = shards, streams
        self.supplies: tuple[Supply, ...] = ()
        self.lost = 0
        self.error: ReplayError | None = None
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # No condition: an interrupt of the one who waits would leave its lock behind.
        self._over = threading.Event()
        self._used, self._wanted = True, False
        self._left = Updated(0, 0)

    # -- for the thread that takes batches ----------------------------------------------------------------------------------------------------

    @contextmanager
    def used(self) -> Iterator[None]:
        """While it lasts, a batch is wanted. While none is, nothing is asked."""
        self._used = self._wanted = True
        try:
            yield
        finally:
            self._wanted = False

    def wait(self, seconds: float) -> None:
        """Waits until something changed, at most for so long."""
        with suppress(queue.Empty):
            self._bell.get(timeout=max(0.0, min(seconds, FRESH_SECONDS)))

    def begin_at(self, taken: Mapping[int, int]) -> None:
        """Ends the streams of all shards. They begin again after so many rows of each shard, by its number."""
        for supply in self.supplies:
            supply.begin_at(taken.get(supply.shard.number, 0))

    def lose(self, supply: Supply, error: ReplayError) -> None:
        """Notes that a shard is lost, and ends its stream."""
        supply.shard.lose(error)
        self._count_lost()
        supply.lose(error)

    def is_renewed(self, supply: Supply) -> bool:
        """Whether the shard has other rows than it had when the stream began. It is asked, where that is not known.

        Raises:
            ReplayError: it does not say it.
        """
        return supply.is_renewed or supply.is_other(self._streams.totals(supply.shard).generation_id)

    def check_least(self) -> None:
        """Passes where the shards that are there have the rows that the rate limiter of the whole buffer wants before one is drawn.

        Raises:
            RateLimitedError: they are fewer.
        """
        there = [supply for supply in self.supplies if supply.shard.is_there or not self._shards.goes_on]
        least, stored = self._shards.least_rows(len(there)), sum(supply.size for supply in there)
        if stored < least:
            raise too_few(least, stored)

    @property
    def updated(self) -> Updated:
        """What became of the rows of updates, of shards that left, too."""
        return add_up(self._left, *(supply.updated for supply in self.supplies))

    def send_priorities(self, row_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """Sends new priorities of rows to their shards. Those of shards that are lost, or left, are stale.

        Raises:
            RowIdError: an id names a shard that the buffer never had. Nothing is sent.
        """
        supplies, numbers, own = self.supplies, shard_numbers(row_ids), local_row_ids(row_ids)
        rows_of = [(supply, np.flatnonzero(numbers == supply.shard.number)) for supply in supplies]
        gone = len(row_ids) - sum(len(rows) for _, rows in rows_of)
        if gone:
            check_shard_numbers(row_ids, numbers, {supply.shard.number for supply in supplies} | self._shards.removed)
            self._left = add_up(self._left, Updated(0, gone))
        for supply, rows in rows_of:
            if len(rows):
                supply.send_priorities(own[rows], priorities[rows])

    # -- for the thread that keeps ------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Opens the streams of all shards that have rows.

        Raises:
            ReplayError: one cannot be opened, or a shard is lost and the stream does not go on without it.
        """
        self._join()
        self._refresh(list(self.supplies))
        if self.error is not None:
            raise self.error
        if not self._shards.goes_on:
            lost = next((supply.error for supply in self.supplies if isinstance(supply.error, ServerUnavailableError)), None)
            if lost is not None:
                raise lost

    def run(self) -> None:
        """Keeps the supplies until the stream ends."""
        while not self._over.wait(FRESH_SECONDS / 2):
            if not self._used:
                continue
            self._used = self._wanted
            try:
                self._join()
                self._refresh(self._due())
            except ReplayError as error:
                self._fail(error)
                return

    def _fail(self, error: ReplayError) -> None:
        self.error = error
        self._ring()

    def _ring(self) -> None:
        """Ends a wait for a change."""
        if self._bell.empty():
            self._bell.put(None)

    def _join(self) -> None:
        """Makes a supply for each shard that came, and ends those of shards that left."""
        shards, known = self._shards.now, {supply.shard: supply for supply in self.supplies}
        if tuple(known) == shards:
            return
        self.supplies = tuple(known.pop(shard) if shard in known else Supply(shard, self._streams) for shard in shards)
        for supply in known.values():
            supply.drop()
            self._left = add_up(self._left, supply.updated)
        self._ring()

    def _due(self) -> list[Supply]:
        """The supplies of the shards that are to be asked. Of those that are lost the buffer itself says when they are back."""
        now, goes_on = time.monotonic(), self._shards.goes_on
        asked = [supply for supply in self.supplies if supply.shard.is_there or not goes_on]
        return [supply for supply in asked if now - supply.heard >= FRESH_SECONDS or (supply.totals.rows and not supply.is_open)]

    def _refresh(self, supplies: list[Supply]) -> None:
        if not supplies:
            return
        of_shard = {supply.shard: supply for supply in supplies}
        answers = self._shards.tried(lambda shard: self._asked(of_shard[shard]), of_shard)
        self._count_lost()
        for supply, answer in zip(supplies, answers, strict=True):
            if isinstance(answer, ServerUnavailableError):
                if self._shards.goes_on:
                    supply.lose(answer)
                supply.error = answer
        self._ring()

    def _asked(self, supply: Supply) -> None:
        """Asks a shard for its totals, and opens its stream where it has rows. Only then it has a part in the draws."""
        try:
            self._ask(supply)
        except (DeadlineError, OverloadedError) as error:  # It may pass: who takes batches finds out for how long it is waited for.
            raise ServerUnavailableError(str(error)) from error

    def _ask(self, supply: Supply) -> None:
        asked = time.monotonic()
        totals, generation_id, supply.size = self._streams.totals(supply.shard)
        if supply.is_open and supply.is_other(generation_id):
            supply.drop()
        if totals.rows and not supply.is_open and not self._over.is_set():
            try:
                supply.shard.asked(lambda _: supply.open(generation_id))
            except EmptyTableError:
                totals = NOTHING
        supply.note(totals, asked)
        if self._over.is_set():
            supply.drop()

    def _count_lost(self) -> None:
        self.lost = sum(not supply.shard.is_there for supply in self.supplies)

    def close(self) -> None:
        """Ends all streams, and the thread."""
        self._over.set()
        self._fail(ClosedError("the stream is closed"))
        for supply in self.supplies:
            supply.drop()
        self._streams.forget()
