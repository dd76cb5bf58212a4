"""The guard that bounds the long-lived streams, so that they leave threads to the other calls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tdreplay.errors import StreamLimitError
from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Answers, Proceed
from tdreplay_server.transport.guards.limit import Client, Places, Share, client_of

__all__ = ["Permits"]

LONG_LIVED = frozenset({"AddBatch", "Sample", "SampleAll", "Epoch", "Checkpoint", "Watch", "ServerReflectionInfo"})
"""The calls that stay open until their client has enough. Each needs a permit."""


class Permits:
    """Gives each long-lived call a permit when its first request comes, and takes it back when the call ends. Other calls need none.

    Standing calls have permits of their own. A client keeps such a call open between single calls, to save the time of opening one, and can do
    without.

    Args:
        limit: permits for streams.
        standing_limit: permits for standing calls.
        share: how many streams one client may have; None: as many as there are permits.
    """

    def __init__(self, limit: int, standing_limit: int, share: Share | None = None) -> None:
        self._limit = limit
        self._places = {False: Places("max_streams", limit), True: Places("standing calls", standing_limit)}
        self._share = share or Share("max_streams_per_client", limit, limit)

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Answers:
        """Raises StreamLimitError where a long-lived call gets no permit."""
        return self._permitted(requests, call, proceed) if call.method in LONG_LIVED else proceed(requests, call)

    def _permitted(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        first = next(requests, None)
        standing, client = first is not None and getattr(first.head, "standing", False), client_of(call)
        self._take(standing, client)
        try:
            yield from proceed(requests if first is None else itertools.chain([first], requests), call)
        finally:
            self._places[standing].give_back()
            if not standing:
                self._share.give_back(client)

    def _take(self, standing: bool, client: Client) -> None:
        if not self._places[standing].take():
            self._places[standing].refuse()
            which = "as many standing calls as there is room for are" if standing else f"{self._limit} streams (max_streams) are"
            raise StreamLimitError(f"{which} open on this server; close one, or raise the setting", limit="max_streams")
        if not standing and not self._share.take(client):
            self._places[False].give_back()
            raise StreamLimitError(
                f"{self._share.most_of(client)} streams of this client (max_streams_per_client) are open; close one, or raise the setting",
                limit="max_streams_per_client",
            )

    def used(self) -> list[Limit]:
        """How much of its limits is used."""
        return [self._places[False].used(), self._share.used()]
