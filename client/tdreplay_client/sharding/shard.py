"""One shard of a buffer: where it is, whether it answers, and what is known of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from tdreplay.errors import DeadlineError, ReplayError, ServerUnavailableError, TableNotFoundError
from tdreplay_client.sharding.shard_table import ShardTable

__all__ = ["LOSS_SECONDS", "Shard", "ShardPlace"]

log = logging.getLogger("tdreplay")
LOSS_SECONDS = 1.0
"""How long a call to a shard waits for an answer where the buffer goes on without a shard that is lost."""
T = TypeVar("T")


@dataclass(frozen=True)
class ShardPlace:
    """A shard, as a directory of shards names it.

    Attributes:
        number: Its number in the cluster, from 0 to `MAX_SHARDS` - 1. It never changes, and no other shard ever has it.
        address: Where its server listens.
        draining: Whether it takes no more rows, and only gives those that it has, until it leaves.
    """

    number: int
    address: str
    draining: bool = field(default=False, compare=False)


def _raise(_shard: Shard, error: TableNotFoundError) -> None:
    raise error


@dataclass(eq=False)
class Shard:
    """A shard that a buffer uses.

    Attributes:
        place: Its number and its address.
        writes: The table, for calls that wait for a lost server as long as the buffer's `timeout`.
        reads: The table, for calls that give it up after `LOSS_SECONDS` where the buffer goes on without lost shards; else the same as `writes`.
        generation_id: Of its table, when it was last seen.
        given: How many row ids it had given when it was last asked for them.
        lost_since: When it was found lost, as `time.monotonic` says it; None: it is there.
        when_lost: Called each time that it is found lost. It must not wait.
        when_emptied: Called where its table is not there, and the buffer does not go on without it: waits for the table, or raises an error.
    """

    place: ShardPlace
    writes: ShardTable
    reads: ShardTable
    generation_id: str = ""
    given: int = 0
    lost_since: float | None = None
    when_lost: Callable[[], object] = lambda: None
    when_emptied: Callable[[Shard, TableNotFoundError], None] = _raise
    _noting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def number(self) -> int:
        """Its number in the cluster."""
        return self.place.number

    @property
    def is_there(self) -> bool:
        """Whether it answered when it was last asked."""
        return self.lost_since is None

    def is_lost_for(self, seconds: float, start: float = 0.0) -> bool:
        """Whether it is lost for that long already. `start`: not counting the time before that, as `time.monotonic` says it."""
        since = self.lost_since
        return since is not None and time.monotonic() - max(since, start) >= seconds

    def asked(self, call: Callable[[ShardTable], T]) -> T:
        """The answer of its table. Where it does not answer, the shard counts as lost from then on.

        Raises:
            ServerUnavailableError: it is lost.
            TableNotFoundError: the table was dropped, and the buffer does not go on without lost shards.
        """
        try:
            found = self._found(call)
        except ServerUnavailableError as error:
            self.lose(error)
            raise
        except (DeadlineError, TableNotFoundError) as error:  # The latter: it was started again, without the table.
            if self.reads is self.writes:
                raise
            self.lose(error)
            raise ServerUnavailableError(str(error)) from error
        self.find()
        return found

    def _found(self, call: Callable[[ShardTable], T]) -> T:
        """The answer of its table. Where that is not there, and the buffer does not go on without it, it is waited for."""
        try:
            return call(self.reads)
        except TableNotFoundError as error:
            if self.reads is not self.writes:
                raise
            self.when_emptied(self, error)
        return call(self.reads)

    def lose(self, error: ReplayError) -> None:
        """Notes that it does not answer. It is said once in the log."""
        with self._noting:
            first, self.lost_since = self.lost_since is None, self.lost_since or time.monotonic()
        if first:
            log.warning("shard %d is lost: %s", self.number, error)
            self.when_lost()

    def find(self) -> None:
        """Notes that it answers. It is said in the log where it was lost."""
        if self.lost_since is None:
            return
        with self._noting:
            since, self.lost_since = self.lost_since, None
        if since is not None:
            log.warning("shard %d at %s is back after %.1f s", self.number, self.place.address, time.monotonic() - since)

    def go_to(self, place: ShardPlace) -> None:
        """Notes where the directory says that it is now. At another address it counts as lost until it was seen there, with or without its rows.

        Raises:
            ForkedError, ClosedError: it cannot be used any more.
        """
        moved, self.place = place.address != self.place.address, place
        if moved:
            for table in self._tables:
                table.move(place.address)
            self.lose(ServerUnavailableError(f"it is at {place.address} now"))

    @property
    def _tables(self) -> Collection[ShardTable]:
        return {id(table): table for table in (self.reads, self.writes)}.values()

    def close(self) -> None:
        """Closes its connections."""
        for table in self._tables:
            table.close()
