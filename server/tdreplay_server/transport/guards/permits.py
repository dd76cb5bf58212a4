"""The guard that bounds the long-lived streams, so that they leave threads to the other calls."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from tdreplay.errors import StreamLimitError
from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Answers, Proceed

__all__ = ["Permits"]

LONG_LIVED = frozenset({"AddBatch", "Sample", "SampleAll", "Epoch", "Checkpoint", "Watch"})
"""The calls that stay open until their client has enough. Each needs a permit."""


class Permits:
    """Gives each long-lived call a permit when its first request comes, and takes it back when the call ends. Other calls need none.

    Standing calls have permits of their own. A client keeps such a call open between single calls, to save the time of opening one, and can do
    without.

    Args:
        limit: permits for streams.
        standing_limit: permits for standing calls.
    """

    def __init__(self, limit: int, standing_limit: int) -> None:
        self._limit = limit
        self._free = {False: limit, True: standing_limit}
        self._lock = threading.Lock()
        self._refused = 0  # Streams.

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Answers:
        """Raises StreamLimitError where a long-lived call gets no permit."""
        return self._permitted(requests, call, proceed) if call.method in LONG_LIVED else proceed(requests, call)

    def _permitted(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        first = next(requests, None)
        standing = first is not None and getattr(first.head, "standing", False)
        self._take(standing)
        try:
            yield from proceed(requests if first is None else itertools.chain([first], requests), call)
        finally:
            with self._lock:
                self._free[standing] += 1

    def used(self) -> Limit:
        """The permits for streams, and how many of them are taken."""
        with self._lock:
            return Limit(name="max_streams", limit=self._limit, used=self._limit - self._free[False], refused=self._refused)

    def _take(self, standing: bool) -> None:
        with self._lock:
            if not self._free[standing]:
                self._refused += not standing
                which = "as many standing calls as there is room for are" if standing else f"{self._limit} streams (max_streams) are"
                raise StreamLimitError(f"{which} open on this server; close one, or raise the setting")
            self._free[standing] -= 1
