"""The guard that knows the calls that run: how many there may be, how long one may wait for its client, and how they end when the server stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from tdreplay.errors import OverloadedError, ServerUnavailableError
from tdreplay.server_status import Limit
from tdreplay_server.transport.call import Call, Request, client_gone
from tdreplay_server.transport.guards.guard import Answer, Proceed

__all__ = ["SPARE_THREADS", "Running"]

CLIENT_SECONDS = 60.0
"""How long a call may wait for a client that has no reason to let it wait: for its only request, or until an answer that it asked for is taken."""
YIELD_SECONDS = 0.1
"""How long a call must have waited for its client before it has to make room for another call. A request comes with the call, or soon after it."""
SPARE_THREADS = 64
LOOK_SECONDS = 1.0


class Running:
    """The calls that run, each in a thread. Where there are too many, a call that waits makes room for a new one: for its client, or for others.

    A call that waits costs nothing but its thread. So a client that opens calls and sends no request, or asks for answers and does not take them,
    keeps threads from others only until these need them. There are some threads beyond the limit, so that a new call need not wait until the call
    that made room for it has ended. A call that arrives when these are taken too is refused: no call waits for a thread.

    gRPC could refuse new calls by itself when the server stops. But calls that come while it tells its clients would end as CANCELLED, which says
    nothing of the server.

    Args:
        limit: the number of calls from which on those that wait for their clients make room.
        setting: which of the server's settings the limit is; '': none.

    Attributes:
        threads: the number of threads that the calls need.
    """

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit, self._setting, self.threads = limit, setting, limit + SPARE_THREADS
        self._admitted = self._refused = 0
        self._calls: set[Call] = set()
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        threading.Thread(target=self._end_late_calls, name="tdreplay-calls", daemon=True).start()

    def admit(self) -> bool:
        """Whether there is room for a call that arrives. If so, the call counts until it has passed this guard. This does not wait."""
        with self._changed:
            ended = self._make_room() if self._admitted >= self._limit else None
            if self._admitted >= self.threads:
                self._refused += 1
                return False
            self._admitted += 1
        if ended is not None:
            ended.cancel()
        return True

    def _make_room(self) -> Call | None:
        """The call that has waited longest for its client, or for other calls, if that is long enough. It does not count any more."""
        now = time.monotonic()
        longest = max(self._calls, key=lambda call: _yielded(call, now), default=None)
        if longest is None or _yielded(longest, now) < YIELD_SECONDS:
            return None
        self._calls.discard(longest)
        self._admitted -= 1
        return longest

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Raises OverloadedError where there is no room, and ServerUnavailableError where the server stops."""
        if not call.admitted:
            which = f"{self._limit} calls ({self._setting})" if self._setting else f"{self._limit} calls of this kind"
            raise OverloadedError(f"{which} run on this server already; try again later", limit=self._setting)
        with self._changed:
            self._calls.add(call)
        try:
            self._check_serving()
            for answer in proceed(self._watched(requests, call), call):
                call.waits_since = time.monotonic()
                yield answer
                call.waits_since = None
        finally:
            with self._changed:
                if call in self._calls:  # Else it has made room.
                    self._calls.discard(call)
                    self._admitted -= 1
                self._changed.notify_all()

    def _watched(self, requests: Iterator[Request], call: Call) -> Iterator[Request]:
        """The requests of a call, which notes when it waits for one.

        Raises:
            ServerUnavailableError: the server stops, and the next request has not come yet.
            ClientGoneError: no request will come, and the client did not say so.
        """
        call.waits_since = time.monotonic()  # Until the first one has come.
        while True:
            request = self._next(requests, call)
            call.waits_since = None
            if request is None:
                return
            yield request

    def _next(self, requests: Iterator[Request], call: Call) -> Request | None:
        call.idle = True
        try:
            self._check_serving()
            return next(requests, None)
        except grpc.RpcError as error:
            raise client_gone(error) from None
        finally:
            call.idle = False

    def _check_serving(self) -> None:
        if self._stopped.is_set():
            raise ServerUnavailableError("the server is stopping")

    def _end_late_calls(self) -> None:
        """Ends calls that have waited for their clients for too long, until the server stops."""
        while not self._stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            with self._changed:
                late = [call for call in self._calls if _waited(call, now) > CLIENT_SECONDS and not (call.patient and call.idle)]
            for call in late:
                call.cancel()

    def used(self) -> list[Limit]:
        """How much of its limit is used."""
        with self._changed:
            return [Limit(name=self._setting, limit=self._limit, used=self._admitted, refused=self._refused)]

    def stop(self, seconds: float) -> None:
        """Lets no call begin any more, ends those that wait, and blocks until the others have finished, at most so many seconds.

        What waits for a request, or for calls that do not come any more, gets nothing by waiting.
        """
        self._stopped.set()
        with self._changed:
            now = time.monotonic()
            idle = [call for call in self._calls if call.idle or _stood(call, now) > YIELD_SECONDS]
        for call in idle:
            call.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, seconds)


def _yielded(call: Call, now: float) -> float:
    """The seconds that a call has waited for its client or, if it is no stream, for other calls. Streams have permits."""
    return _waited(call, now) if call.patient else call.stood(now)


def _stood(call: Call, now: float) -> float:
    """The seconds that a call has waited for other calls."""
    return 0.0 if call.yields_since is None else now - call.yields_since


def _waited(call: Call, now: float) -> float:
    """The seconds that a call has waited for its client."""
    since = call.waits_since
    return 0.0 if since is None else now - since
