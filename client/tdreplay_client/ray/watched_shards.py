"""The shards of a cluster, as their actors say that they are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from tdreplay.errors import ReplayError, ServerUnavailableError
from tdreplay_client.ray.calls import answer_of
from tdreplay_client.ray.status import LEAVING, RESTARTING, STARTING, ShardStatus

__all__ = ["ANSWER_SECONDS", "PAUSE_SECONDS", "WatchedShards", "seconds_until"]

log = logging.getLogger("tdreplay")
ASK_SECONDS = 0.5
"""How often each actor is asked."""
SILENT_SECONDS = 2.0
"""An actor that does not answer for so long is being restarted, as far as the status says."""
FIRST_SECONDS = 1.5
"""How long whoever asks for the places waits where not all addresses are known."""
ANSWER_SECONDS = 15.0
"""How long an actor may take for what it does at once."""
PAUSE_SECONDS = 0.5
"""Before an actor that is being restarted is asked again."""


@dataclass
class _Shard:
    actor: Any
    group: str
    status: ShardStatus
    heard: float
    asked: Any = None
    """The call that has not been answered."""
    leaves: bool = False
    """Whether clients use it no longer, whatever it says: it may have been restarted on another node, without what it knew."""


class WatchedShards:
    """The actors of the shards of a cluster, each asked twice a second how it is. Its methods may be called by several threads."""

    def __init__(self) -> None:
        self._shards: dict[int, _Shard] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="tdreplay-watch", daemon=True).start()

    def add(self, number: int, actor: Any, group: str, status: ShardStatus | None = None) -> None:
        """Watches one more shard, which said that of itself."""
        known = status or ShardStatus(number, "", "", RESTARTING)
        with self._changed:
            self._shards[number] = _Shard(actor, group, known, time.monotonic())
            self._changed.notify_all()

    def remove(self, number: int) -> str | None:
        """Watches a shard no longer. The name of its placement group, where no other shard is in it."""
        with self._changed:
            group = self._shards.pop(number).group
            return group if group and all(shard.group != group for shard in self._shards.values()) else None

    def note(self, status: ShardStatus) -> None:
        """Notes what a shard said of itself."""
        with self._changed:
            shard = self._shards.get(status.number)
            if shard is None:
                return
            if status.began_empty and not shard.status.began_empty:
                log.warning("shard %d began empty on node %s: what it held is lost", status.number, status.node[:8])
            shard.status, shard.heard = replace(status, address=_address(status, shard.status)), time.monotonic()
            self._changed.notify_all()

    def let_leave(self, numbers: Iterable[int]) -> None:
        """Notes that clients use these shards no longer."""
        with self._changed:
            for number in numbers:
                self._shards[number].leaves = True

    def asked(self, number: int, method: str, until: float, *arguments: Any) -> Any:
        """What a shard answers. While its actor is being restarted, it is asked again.

        Raises:
            ReplayError: what it raised; or it did not answer in time.
        """
        while True:
            try:
                return answer_of(getattr(self.actor(number), method).remote(*arguments), seconds_until(until), f"shard {number}")
            except ServerUnavailableError:
                if time.monotonic() > until:
                    raise
                time.sleep(PAUSE_SECONDS)

    def ask_all(self) -> None:
        """Learns at once how all shards are."""
        for actor in self.actors().values():
            with suppress(ReplayError):  # It is being restarted, and says so by its silence.
                self.note(answer_of(actor.status.remote(), PAUSE_SECONDS, "a shard"))

    def actor(self, number: int) -> Any:
        """That of a shard."""
        return self._shards[number].actor

    def actors(self) -> dict[int, Any]:
        """Those of all shards, by number."""
        with self._changed:
            return {number: self._shards[number].actor for number in sorted(self._shards)}

    def statuses(self) -> tuple[ShardStatus, ...]:
        """What each shard said last, by number; one that is silent is being restarted."""
        now = time.monotonic()
        with self._changed:
            return tuple(_said(self._shards[number], now) for number in sorted(self._shards))

    def staying(self) -> list[int]:
        """The numbers of the shards that do not leave."""
        return [status.number for status in self.statuses() if status.state != LEAVING]

    def places(self) -> Sequence[ShardStatus]:
        """What those said last that clients use: all but those that leave. Empty where one did not say its address yet."""
        with self._changed:
            self._changed.wait_for(lambda: all(shard.status.address for shard in self._shards.values()), FIRST_SECONDS)
            using = [shard.status for _, shard in sorted(self._shards.items()) if not shard.leaves and shard.status.state != LEAVING]
        return using if all(status.address for status in using) else ()

    def end(self) -> None:
        """Asks no more."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(ASK_SECONDS):
            with self._changed:
                shards = list(self._shards.values())
            for shard in shards:
                shard.asked = shard.asked or shard.actor.status.remote()
            asking = {shard.asked: shard for shard in shards}
            if asking:
                answered, _ = ray.wait(list(asking), num_returns=len(asking), timeout=ASK_SECONDS)
                for reference in answered:
                    asking[reference].asked = None
                    with suppress(ReplayError):  # It is being restarted, and says so by its silence.
                        self.note(answer_of(reference, ASK_SECONDS, "a shard"))


def seconds_until(moment: float) -> float:
    """How long it is until a moment of `time.monotonic`, and not nothing: an answer may be there already."""
    return max(0.1, moment - time.monotonic())


def _address(status: ShardStatus, before: ShardStatus) -> str:
    """Where a shard is, for clients: its last address until its server is ready at another one. To them it is lost meanwhile, and was not removed."""
    return status.address if status.state != STARTING or not before.address else before.address


def _said(shard: _Shard, now: float) -> ShardStatus:
    if shard.leaves:
        return replace(shard.status, state=LEAVING)
    silent = now - shard.heard > SILENT_SECONDS and shard.status.state not in (LEAVING, STARTING)
    return replace(shard.status, state=RESTARTING, pid=None) if silent else shard.status
