"""Shards of a cluster that are started: those that the disks keep, and new ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from tdreplay.errors import DeadlineError, FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from tdreplay.limits import MAX_SHARDS
from tdreplay_client.ray.calls import answer_of, answers_of
from tdreplay_client.ray.placing import Kept, kept_shards, remove_group, shortage, started_shards
from tdreplay_client.ray.settings import ClusterSettings, group_name
from tdreplay_client.ray.watched_shards import ANSWER_SECONDS, WatchedShards, seconds_until

__all__ = ["ShardStarts"]

log = logging.getLogger("tdreplay")
START_SECONDS = 120.0
"""How long new shards of a cluster that runs may take: whoever waits for room hears soon that there is none."""
LOOK_SECONDS = 30.0
"""How long a node may take to look at its disk, where Ray first has to start a process."""
NO_ROOM_SECONDS = 3.0
"""How long actors are waited for to end by themselves where Ray did not start all of them."""
LATE_SECONDS = 0.5
"""How much later than a shard that is not ready in time says so, its silence counts."""


class ShardStarts:
    """Starts shards, and gives each new one a number that no other has or had.

    Args:
        settings: Of the cluster.
        shards: Those that there are. What is started is added.
    """

    def __init__(self, settings: ClusterSettings, shards: WatchedShards) -> None:
        self._settings, self._shards = settings, shards
        self._next = 0

    def count_from(self, number: int) -> None:
        """Gives no number below this one to a new shard."""
        self._next = max(self._next, number)

    def first(self, shards: int, until: float) -> None:
        """Starts so many shards: those that are found on the nodes' disks, and new ones.

        Raises:
            FailedPreconditionError: the disks have more of them; or a server does not start.
            ReplayError: as `started_shards`. Nothing is left of what was started.
        """
        kept = kept_shards(self._settings, max(seconds_until(until), LOOK_SECONDS))
        if len(kept) > shards:
            raise FailedPreconditionError(
                f"shards ({shards}) must be at least {len(kept)}: {self._settings.data_dir} has so many shards of cluster "
                f"{self._settings.name!r}. Start them all, and let resize remove some"
            )
        self.count_from(max([0, *(number + 1 for number in kept), *(each.record.next_number for each in kept.values())]))
        new = self._new(shards - len(kept))
        self._start(sorted([*kept, *new]), kept, until)
        log.info("cluster %s has the shards %s, of which %s have rows already", self._settings.name, sorted([*kept, *new]), sorted(kept))

    def more(self, shards: int, until: float) -> list[int]:
        """Starts so many new shards, within two minutes at most: their numbers.

        Raises:
            InvalidArgumentError: no numbers are left for them.
            ReplayError: as `first`.
        """
        new = self._new(shards)
        if new:
            self._start(new, {}, min(until, time.monotonic() + START_SECONDS))
        return new

    def _new(self, shards: int) -> list[int]:
        if self._next + shards > MAX_SHARDS:
            raise InvalidArgumentError(f"the cluster had {self._next} shards, and {shards} more are above {MAX_SHARDS}: no number is given twice")
        self._next += shards
        return list(range(self._next - shards, self._next))

    def _start(self, numbers: Sequence[int], kept: Mapping[int, Kept], until: float) -> None:
        nodes = [status.node for status in self._shards.statuses()]
        beside = max(nodes, key=nodes.count, default="")
        actors: dict[int, Any] = {}
        try:
            actors = started_shards(self._settings, numbers, kept, self._next, seconds_until(until), beside)
            waiting = {number: actor.ready.remote(seconds_until(until)) for number, actor in actors.items()}
            keeping = [actor.keep_next_number.remote(self._next) for actor in (self._shards.actors() | actors).values()]
            found = {number: self._ready(number, reference, until, len(numbers)) for number, reference in waiting.items()}
            answers_of(keeping, ANSWER_SECONDS, "a shard")
            groups = {number: answer_of(actor.kept.remote(), ANSWER_SECONDS, f"shard {number}")[1] for number, actor in actors.items()}
        except BaseException as error:
            self._undo(numbers, actors, kept, NO_ROOM_SECONDS if isinstance(error, ResourceExhaustedError) else ANSWER_SECONDS)
            raise
        for number, actor in actors.items():
            self._shards.add(number, actor, groups[number], found[number])

    def _ready(self, number: int, reference: Any, until: float, shards: int) -> Any:
        try:
            return answer_of(reference, seconds_until(until) + LATE_SECONDS, f"shard {number}")
        except DeadlineError as error:  # Ray did not start its actor, or is about to.
            missing = shortage(self._settings.resources, shards)
            if missing:
                raise ResourceExhaustedError(f"there is no room on the nodes for shard {number}: {missing}") from None
            raise error

    def _undo(self, numbers: Sequence[int], actors: Mapping[int, Any], kept: Mapping[int, Kept], seconds: float) -> None:
        ending = [(actor.stop if number in kept else actor.discard).remote() for number, actor in actors.items()]
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=seconds)
        for actor in actors.values():
            ray.kill(actor, no_restart=True)
        for number in numbers:
            remove_group(group_name(self._settings.name, number))
