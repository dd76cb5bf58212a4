"""The guard that bounds how many calls one client may have open."""

from __future__ import annotations

from collections.abc import Iterator

from tdreplay.errors import OverloadedError
from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Proceed
from tdreplay_server.transport.guards.limit import Share, client_of

__all__ = ["Shares"]


class Shares:
    """Lets each client have so many calls open. A client is its name, or the host that it calls from.

    Args:
        share: how many.
    """

    def __init__(self, share: Share) -> None:
        self._share = share

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Raises OverloadedError where the client has as many calls open as it may have."""
        client = client_of(call)
        if not self._share.take(client):
            raise OverloadedError(
                f"{self._share.most_of(client)} calls of this client are open (max_calls_per_client); try again, or raise the setting",
                limit="max_calls_per_client",
            )
        try:
            yield from proceed(requests, call)
        finally:
            self._share.give_back(client)

    def used(self) -> list[Limit]:
        """How much of its limit is used."""
        return [self._share.used()]
