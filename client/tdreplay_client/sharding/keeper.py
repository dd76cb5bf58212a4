"""Keeps the supplies of a stream: in a thread, away from the batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from tdreplay.errors import ClosedError, EmptyTableError, ReplayError, ServerUnavailableError
from tdreplay_client.sharding.pull_streams import PullStreams
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.supply import Supply

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
        self.changed = threading.Condition()
        self._over = threading.Event()
        self._used = True

    # -- for the thread that takes batches ----------------------------------------------------------------------------------------------------

    def use(self) -> None:
        """Notes that batches are taken: while they are not, nothing is asked."""
        self._used = True

    def wait(self, seconds: float) -> None:
        """Waits until something changed, at most for so long."""
        self.use()
        with self.changed:
            self.changed.wait(min(seconds, FRESH_SECONDS))

    def begin_at(self, taken: Mapping[int, int]) -> None:
        """Ends the streams of all shards. They begin again after so many rows of each shard, by its number."""
        for supply in self.supplies:
            supply.begin_at(taken.get(supply.shard.number, 0))
        self.use()

    def lose(self, supply: Supply, error: ReplayError) -> None:
        """Notes that a shard is lost, and ends its stream."""
        supply.shard.lose(error)
        self._count_lost()
        supply.drop()

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
            self._used = False
            try:
                self._join()
                self._refresh(self._due())
            except ReplayError as error:
                self._fail(error)
                return

    def _fail(self, error: ReplayError) -> None:
        self.error = error
        with self.changed:
            self.changed.notify_all()

    def _join(self) -> None:
        """Makes a supply for each shard that came, and ends those of shards that left."""
        shards = list(self._shards.now)
        known = {supply.shard: supply for supply in self.supplies}
        if list(known) == shards:
            return
        for place, shard in enumerate(shards):
            if shard in known:
                known[shard].place = place
        self.supplies = tuple(known.pop(shard) if shard in known else Supply(shard, place, self._streams) for place, shard in enumerate(shards))
        for supply in known.values():
            supply.drop()

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
                supply.error = answer
                if self._shards.goes_on:
                    supply.drop()
        with self.changed:
            self.changed.notify_all()

    def _asked(self, supply: Supply) -> None:
        """Asks a shard for its totals, and opens its stream where it has rows."""
        asked = time.monotonic()
        supply.note(self._streams.totals(supply.shard), asked)
        if supply.totals.rows and not supply.is_open and not self._over.is_set():
            try:
                supply.shard.asked(lambda _: supply.open())
            except EmptyTableError:
                supply.empty()
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
