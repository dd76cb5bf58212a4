"""Shards that leave a cluster: they take no more rows, are used no longer, and give their rows to those that stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import ray

from tdreplay.errors import ServerUnavailableError
from tdreplay_client.ray.calls import answer_of, answers_of
from tdreplay_client.ray.placing import remove_group
from tdreplay_client.ray.shard_record import ShardRecord
from tdreplay_client.ray.status import LEAVING, Resized, Target
from tdreplay_client.ray.watched_shards import ANSWER_SECONDS, PAUSE_SECONDS, WatchedShards, seconds_until

__all__ = ["Leaving"]

log = logging.getLogger("tdreplay")
REFRESH_SECONDS = 3.0
"""Within this time clients know that a shard is not used any more: they ask once a second."""
MOVE_SECONDS = 30.0
"""How long a shard that does not answer is waited for, before it is looked for at another address."""


class Leaving:
    """Lets shards go.

    Args:
        shards: Those that there are. What left is removed.
    """

    def __init__(self, shards: WatchedShards) -> None:
        self._shards = shards

    def begin(self, numbers: Sequence[int], mode: str, drain_seconds: float) -> None:
        """Tells shards that they take no more rows, and when they leave and how."""
        leaves_at = time.time() + drain_seconds
        draining = [self._shards.actor(number).drain.remote(mode, leaves_at) for number in numbers]
        answers_of(draining, ANSWER_SECONDS, "a shard")
        self._shards.ask_all()

    def begun(self, until: float) -> dict[int, ShardRecord]:
        """The shards that began to leave, by number."""
        found = {number: self._record(number, until) for number in self._shards.actors()}
        return {number: record for number, record in found.items() if record.mode}

    def end(self, numbers: Sequence[int], mode: str, drain_seconds: float, until: float) -> Resized:
        """Lets shards go that take no more rows.

        Before clients go on without one, its server is there for a while, so that whoever does not know whether rows were stored can ask again. It is
        there for a while longer where it was restarted meanwhile.

        Raises:
            ReplayError: one is not ready, or its rows were not moved, in time. What was begun is not undone.
        """
        before = self._restarts(numbers, until)
        time.sleep(drain_seconds)
        while before != (now := self._restarts(numbers, until)):
            before = now
            time.sleep(REFRESH_SECONDS)
        targets = sorted(self._shards.actors().keys() - set(numbers) - self.begun(until).keys())
        self._shards.let_leave(numbers)
        for number in numbers:
            self._shards.asked(number, "leave", until, mode, targets)
        time.sleep(REFRESH_SECONDS)
        emptied = [self._emptied(number, mode, targets, until) for number in numbers]
        return Resized(removed=tuple(numbers), moved_rows=sum(moved for moved, _ in emptied), dropped_rows=sum(dropped for _, dropped in emptied))

    def _restarts(self, numbers: Sequence[int], until: float) -> list[int]:
        """How often servers were started again, all of which are ready now, or left already."""
        return [self._shards.asked(number, "ready", until, seconds_until(until)).restarts for number in numbers]

    def _record(self, number: int, until: float) -> ShardRecord:
        found: ShardRecord = self._shards.asked(number, "kept", until)[0]
        return found

    def _emptied(self, number: int, mode: str, targets: Sequence[int], until: float) -> tuple[int, int]:
        """Empties a shard that leaves, and ends it. Where a target is restarted meanwhile, and has another address then, it goes on with that."""
        while True:
            if self._record(number, until).state != LEAVING:  # Its node is gone: it was started on another one, without what it knew.
                self._shards.asked(number, "leave", until, mode, targets)
            addresses = {status.number: status.address for status in self._shards.statuses()}
            found = [Target(each, addresses[each]) for each in self._record(number, until).targets if each in addresses]
            try:
                emptying = self._shards.actor(number).empty.remote(found, min(MOVE_SECONDS, seconds_until(until)))
                emptied: tuple[int, int] = answer_of(emptying, seconds_until(until), f"shard {number}")
            except ServerUnavailableError as error:
                if time.monotonic() > until:
                    raise
                log.warning("shard %d is not empty yet: %s", number, error)
                time.sleep(PAUSE_SECONDS)
            else:
                self.remove(number)
                return emptied

    def remove(self, number: int) -> None:
        """Ends the actor of a shard, and gives back its place."""
        ray.kill(self._shards.actor(number), no_restart=True)
        group = self._shards.remove(number)
        if group is not None:
            remove_group(group)
