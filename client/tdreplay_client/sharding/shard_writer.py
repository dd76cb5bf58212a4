"""The parts of a writer over shards: the writer of one shard, how long it waits for that, and where it counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from tdreplay.limits import MAX_BATCH_SIZE, check_seconds, check_whole
from tdreplay_client.sharding.shard import LOSS_SECONDS, Shard
from tdreplay_client.sharding.shard_choice import ShardChoice
from tdreplay_client.writing.leaving_writer import LeavingWriter

__all__ = ["Patience", "Seat", "ShardWriter", "WriterSettings", "checked_settings"]


class WriterSettings(NamedTuple):
    """When a writer sends rows: as `Writer` takes it.

    Attributes:
        flush_rows, flush_seconds, max_in_flight: As there.
    """

    flush_rows: int
    flush_seconds: float
    max_in_flight: int


def checked_settings(flush_rows: SupportsIndex, flush_seconds: float, max_in_flight: SupportsIndex) -> WriterSettings:
    """The settings, checked.

    Raises:
        InvalidArgumentError: one breaks its rule.
    """
    rows, blocks = check_whole(flush_rows, "flush_rows", 1, MAX_BATCH_SIZE), check_whole(max_in_flight, "max_in_flight", 1)
    return WriterSettings(rows, check_seconds(flush_seconds, "flush_seconds"), blocks)


class Patience:
    """How long the writer of a shard waits for it. It does not refer to the writer.

    Attributes:
        is_bound: Whether what the shard got must go on there, as an episode: calls wait for it then, also where it is lost.
    """

    def __init__(self, shard: Shard, is_removed: Callable[[Shard], bool]) -> None:
        self._shard, self._is_removed, self._until = shard, is_removed, 0.0
        self.is_bound = False

    def ends_waits(self, away: float) -> bool:
        """Whether calls end that wait for a shard which has been away for so many seconds."""
        return not self.is_bound and self.is_over(away)

    def is_over(self, away: float) -> bool:
        """Whether a shard is given up that has been away for so many seconds. One that is draining takes no more rows."""
        lost = away > LOSS_SECONDS or not self._shard.is_there or self._shard.place.draining or self._is_removed(self._shard)
        return lost and time.monotonic() >= self._until

    def stay(self, seconds: float) -> None:
        """It is not given up for so long."""
        self._until = time.monotonic() + seconds


@dataclass(eq=False)
class ShardWriter:
    """The writer of one shard."""

    shard: Shard
    writer: LeavingWriter
    patience: Patience

    @property
    def is_lost(self) -> bool:
        """Whether it is not waited for any more."""
        return self.patience.is_over(self.writer.away_seconds)


class Seat:
    """The shard on which a writer counts.

    Args:
        choice: Chooses it.
        key: All writers of a key go to the same shard; '': this one goes to any.
    """

    def __init__(self, choice: ShardChoice, key: str = "") -> None:
        self._choice, self._key = choice, key
        self._shard: Shard | None = None

    def take(self, avoided: Sequence[Shard]) -> Shard:
        """Another shard, not one of these."""
        shard = self._choice.open_writer(avoided, self._key)
        self.leave()
        self._shard = shard
        return shard

    def leave(self) -> None:
        """It counts nowhere any more."""
        shard, self._shard = self._shard, None
        if shard is not None:
            self._choice.close_writer(shard)
