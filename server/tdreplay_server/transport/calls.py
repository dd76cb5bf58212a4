"""The calls of a server: how many there may be, how long one may wait for its client, and how they end when the server stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from tdreplay.errors import ServerUnavailableError

__all__ = ["Call", "Calls", "ClientGoneError"]

T = TypeVar("T")

CLIENT_SECONDS = 60.0
"""That a call may wait for its client where the client has no reason to wait: to send its only request, or to take an answer that it asked for."""
YIELD_SECONDS = 0.1
"""A call that has waited for its client for so long makes room for another one, where there is none. A request comes with the call, or soon after."""
SPARE_THREADS = 64
LOOK_SECONDS = 1.0


class ClientGoneError(Exception):
    """The client ended the call, or was lost, before its next request came."""


class Call:
    """A call that runs in a thread of its own.

    Attributes:
        context: of the call.
        waits_since: since when it waits for its client to send its first request, or to take an answer (`time.monotonic`); None: it does not.
        idle: whether it waits for another request of its client, which need not come.
        patient: whether its client may take its time to send the first request: it opened a stream, and has nothing to send yet.
    """

    __slots__ = ("context", "idle", "patient", "waits_since")

    def __init__(self, context: grpc.ServicerContext, *, patient: bool) -> None:
        self.context, self.patient = context, patient
        self.waits_since: float | None = None
        self.idle = False

    def waited(self, now: float) -> float:
        """The seconds that it has waited for its client."""
        since = self.waits_since
        return 0.0 if since is None else now - since


class Calls:
    """The calls that run, each in a thread. Where all threads are taken, a call that waits for its client makes room for a new one.

    A call that waits costs nothing but its thread. So a client that opens calls and sends no request, or asks for answers and does not take them,
    keeps threads from others only until these need them. There are a few threads beside the limit, so that a call need not wait for the end of the
    one that made room for it. What arrives when these are taken too is refused: no call waits for a thread.

    gRPC could refuse new calls by itself when the server stops. But those that come while it tells its clients end as CANCELLED, which says nothing
    of the server.

    Attributes:
        limit: from so many calls on, those that wait for their clients make room.
        threads: how many are needed.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.threads = limit, limit + SPARE_THREADS
        self._admitted = 0
        self._running: set[Call] = set()
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        threading.Thread(target=self._end_late_calls, name="tdreplay-calls", daemon=True).start()

    def admit(self) -> bool:
        """Whether another call may begin. It is counted then, until its `running` ends. To be called when a call arrives: it does not wait."""
        with self._changed:
            ended = self._make_room() if self._admitted >= self.limit else None
            if self._admitted >= self.threads:
                return False
            self._admitted += 1
        if ended is not None:
            ended.context.cancel()
        return True

    def _make_room(self) -> Call | None:
        """The call that has waited longest for its client, if that is long enough. It does not count any more."""
        now = time.monotonic()
        longest = max(self._running, key=lambda call: call.waited(now), default=None)
        if longest is None or longest.waited(now) < YIELD_SECONDS:
            return None
        self._running.discard(longest)
        self._admitted -= 1
        return longest

    @contextmanager
    def running(self, context: grpc.ServicerContext, *, patient: bool) -> Iterator[Call]:
        """An admitted call runs. `patient`: as of `Call`.

        Raises:
            ServerUnavailableError: the server stops.
        """
        call = Call(context, patient=patient)
        with self._changed:
            self._running.add(call)
        try:
            self._check_serving()
            yield call
        finally:
            with self._changed:
                if call in self._running:  # Else it has made room.
                    self._running.discard(call)
                    self._admitted -= 1
                self._changed.notify_all()

    def requests(self, received: Iterator[T], call: Call) -> Iterator[T]:
        """The requests that the client of a running call sends.

        Raises:
            ServerUnavailableError: the server stops, and the next request has not come yet.
            ClientGoneError: no request will come, and the client did not say so.
        """
        call.waits_since = time.monotonic()  # Until the first one came.
        while True:
            request = self._next(received, call)
            call.waits_since = None
            if request is None:
                return
            yield request

    def _next(self, received: Iterator[T], call: Call) -> T | None:
        call.idle = True
        try:
            self._check_serving()
            return next(received, None)
        except grpc.RpcError as error:
            # gRPC keeps the error with the call, and with its traceback all that the call's frames hold, shared memory and requests too.
            error.__traceback__ = None
            raise ClientGoneError from None
        finally:
            call.idle = False

    @staticmethod
    def taken(answers: Iterator[T], call: Call) -> Iterator[T]:
        """The answers of a call, which waits for its client until each of them was taken."""
        for answer in answers:
            call.waits_since = time.monotonic()
            yield answer
            call.waits_since = None

    def _check_serving(self) -> None:
        if self._stopped.is_set():
            raise ServerUnavailableError("the server is stopping")

    def _end_late_calls(self) -> None:
        """Ends calls that have waited for their clients for too long, until the server stops."""
        while not self._stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            with self._changed:
                late = [call for call in self._running if call.waited(now) > CLIENT_SECONDS and not (call.patient and call.idle)]
            for call in late:
                call.context.cancel()

    def stop(self, seconds: float) -> None:
        """Begins no call any more, ends those that wait for a request, and blocks until the others are finished, at most for so long."""
        self._stopped.set()
        with self._changed:
            idle = [call for call in self._running if call.idle]
        for call in idle:
            call.context.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, seconds)
