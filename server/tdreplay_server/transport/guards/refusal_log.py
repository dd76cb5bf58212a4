"""The lines in the log for calls that were refused: one each, but not more than anybody could read."""

from __future__ import annotations

import threading
import time

from tdreplay.errors import ReplayError
from tdreplay.texts import MAX_DETAILS
from tdreplay_server.system.logs import log
from tdreplay_server.transport.call import Call
from tdreplay_server.transport.guards.limit import client_of

__all__ = ["LINES_A_SECOND", "RefusalLog"]

LINES_A_SECOND = 20
"""The lines that refusals of one client get within a second. A line takes as long as to refuse a call, so a flood would cost twice as much."""
MOST_CLIENTS = 1024
"""So many clients are told apart within a second; all others count as one."""
OTHERS = ""


class RefusalLog:
    """Writes a line for each call that was refused. Of a client with many within a second it writes the first ones, and then how many followed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second = 0
        self._refusals: dict[str, int] = {}  # Of each client, those within this second.

    def refused(self, call: Call, error: ReplayError) -> None:
        """A call was refused with this error."""
        number, untold = self._counted(client_of(call).key)
        for client, more in untold:
            log.warning("more calls of one client were refused within a second than are shown", client=client, more=more)
        if number <= LINES_A_SECOND:
            log.info(
                "call refused",
                call=call.method,
                request_id=call.request_id,
                peer=call.peer,
                caller=call.principal.name,
                error=type(error).__name__,
                details=str(error)[:MAX_DETAILS],
            )

    def _counted(self, client: str) -> tuple[int, list[tuple[str, int]]]:
        """Counts a refusal, and gives its number among its client's of this second.

        Where a second is over, also the clients of which it had more refusals than are shown, and how many more.
        """
        now, untold = int(time.monotonic()), list[tuple[str, int]]()
        with self._lock:
            if now != self._second:
                untold = [(who, number - LINES_A_SECOND) for who, number in self._refusals.items() if number > LINES_A_SECOND]
                self._second, self._refusals = now, {}
            known = client in self._refusals or len(self._refusals) < MOST_CLIENTS
            key = client if known else OTHERS
            self._refusals[key] = self._refusals.get(key, 0) + 1
            return self._refusals[key], untold
