"""The guard that bounds the bytes of messages that the server has in its hands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from tdreplay.errors import OverloadedError
from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Proceed
from tdreplay_server.transport.guards.limit import Places

__all__ = ["LEAST_BYTES", "InFlight"]

LEAST_BYTES = 16 << 10
"""Smaller messages, in bytes, are not counted: to count one takes as long as to store a row of it."""
STAND_SECONDS = 0.1
"""How long a call must have stood still before it has to make room for another call's bytes."""


class InFlight:
    """Bounds the bytes of requests that are worked on, and those of answers that are on their way, each by itself.

    Answers have room of their own: inserts that wait until rows were drawn could take all of it otherwise, and no row would be drawn any more. A call
    that stands still, because its client takes no answer or because a rate limiter lets it wait, makes room for others.

    Args:
        limit: bytes of each kind (max_bytes_in_flight).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests, self._answers = (_Room(Places("max_bytes_in_flight", limit)) for _ in range(2))

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Raises OverloadedError where there is no room for a message, and none can be made."""
        try:
            for answer in proceed(self._counted(requests, call), call):
                size = len(answer) if isinstance(answer, bytes) else 0
                if size < LEAST_BYTES:
                    yield answer
                    continue
                self._take(self._answers, call, size)
                yield answer
                self._answers.leave(call)
        finally:
            self._requests.leave(call)
            self._answers.leave(call)

    def _counted(self, requests: Iterator[Request], call: Call) -> Iterator[Request]:
        for request in requests:
            size = request.block.nbytes
            if size < LEAST_BYTES:
                yield request
                continue
            self._take(self._requests, call, size)
            yield request
            self._requests.leave(call)

    def _take(self, room: _Room, call: Call, size: int) -> None:
        if not room.take(call, size):
            raise OverloadedError(
                f"{self._limit} bytes (max_bytes_in_flight) of messages are on their way on this server; try again, or raise the setting",
                limit="max_bytes_in_flight",
            )

    def used(self) -> list[Limit]:
        """How much of its limit is used: by requests or by answers, whichever have more."""
        one, other = self._requests.limit.used(), self._answers.limit.used()
        return [Limit(name=one.name, limit=one.limit, used=max(one.used, other.used), refused=one.refused + other.refused)]


class _Room:
    """The bytes of one kind, and which calls have them."""

    def __init__(self, limit: Places) -> None:
        self.limit = limit
        self._held: dict[Call, int] = {}
        self._lock = threading.Lock()

    def take(self, call: Call, size: int) -> bool:
        while not self.limit.take(size):
            if not self._make_room():
                self.limit.refuse()
                return False
        with self._lock:
            self._held[call] = size
        return True

    def leave(self, call: Call) -> None:
        if call in self._held:
            self._give_back(call)

    def _give_back(self, call: Call) -> None:
        with self._lock:
            size = self._held.pop(call, 0)
        if size:
            self.limit.give_back(size)

    def _make_room(self) -> bool:
        """Ends the call that has stood still longest, if that is long enough. False: there is none."""
        now = time.monotonic()
        with self._lock:
            stuck = max(self._held, key=lambda call: call.stood(now), default=None)
        if stuck is None or stuck.stood(now) < STAND_SECONDS:
            return False
        stuck.cancel()
        self._give_back(stuck)
        return True
