"""The guard that counts calls, messages and what calls end with. It is the outermost: calls that other guards refuse count as well.

It knows nothing of Prometheus: `monitoring` reads what it counted. The counters of that library take a lock for each message.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grpc

from tdreplay_server.system.counting import Counted, Distribution
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Proceed

__all__ = ["CallCounts", "MethodCounts"]

HANDLING_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
KINDS = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream", (True, True): "bidi_stream"}
"""Whether client and server stream -> what Prometheus' dashboards call it."""
CODES = {code: code.name.title().replace("_", "") for code in grpc.StatusCode} | {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}
"""The statuses as Go writes them, and so dashboards: InvalidArgument, Canceled, OK."""


class MethodCounts(NamedTuple):
    """What was counted of one method, at one moment.

    Attributes:
        service, method, kind: The service, the method, and how it streams: unary, client_stream, server_stream or bidi_stream.
        started, open: The calls that began, and those of them that are open.
        received, sent: The messages of the clients, and those of the server.
        handled: Each status with which calls end, as Go writes it -> how many ended so.
        refused: The class of the error, and the limit that is its reason or '' -> how many calls ended so.
        seconds: How long calls took, from when a thread took them up until they ended.
    """

    service: str
    method: str
    kind: str
    started: int
    open: int
    received: int
    sent: int
    handled: Mapping[str, int]
    refused: Mapping[tuple[str, str], int]
    seconds: Counted


class CallCounts:
    """Counts the calls of one service. It costs a call a microsecond or two, and a message a tenth of one.

    Args:
        descriptor: The proto's service.
    """

    def __init__(self, descriptor: Any) -> None:
        self._methods = {
            method.name: _Method(descriptor.full_name, method.name, KINDS[method.client_streaming, method.server_streaming])
            for method in descriptor.methods
        }

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Counts the call, while it runs and when it ends."""
        method = self._methods[call.method]
        tally = method.begin()
        try:
            for answer in proceed(map(tally.received, requests), call):
                tally.answers += 1
                yield answer
        except Exception:
            if call.status is grpc.StatusCode.OK:
                call.status = grpc.StatusCode.UNKNOWN  # So gRPC ends it: nobody gave it a status.
            raise
        finally:
            method.end(tally, call)

    def read(self) -> list[MethodCounts]:
        """What was counted of each method so far."""
        return [method.read() for method in self._methods.values()]


class _Tally:
    """The messages of an open call. Only its own threads change it, so that nobody waits for a lock."""

    __slots__ = ("answers", "began", "requests")

    def __init__(self) -> None:
        self.requests = self.answers = 0
        self.began = time.perf_counter()

    def received(self, request: Request) -> Request:
        self.requests += 1
        return request


class _Method:
    def __init__(self, service: str, method: str, kind: str) -> None:
        self._names = (service, method, kind)
        self._lock = threading.RLock()  # A garbage collection inside of it may end another call's generator, in the same thread.
        self._started = self._received = self._sent = 0
        self._open: set[_Tally] = set()
        self._handled: Counter[grpc.StatusCode] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._seconds = Distribution(HANDLING_SECONDS)

    def begin(self) -> _Tally:
        tally = _Tally()
        with self._lock:
            self._started += 1
            self._open.add(tally)
        return tally

    def end(self, tally: _Tally, call: Call) -> None:
        outcome, seconds = call.outcome, time.perf_counter() - tally.began
        with self._lock:
            self._open.discard(tally)
            self._received += tally.requests
            self._sent += tally.answers
            self._handled[outcome] += 1
            if call.refusal[0]:
                self._refused[call.refusal] += 1
            self._seconds.add(seconds)

    def read(self) -> MethodCounts:
        with self._lock:
            tallies = list(self._open)
            received = self._received + sum(tally.requests for tally in tallies)
            sent = self._sent + sum(tally.answers for tally in tallies)
            handled = {name: self._handled[code] for code, name in CODES.items()}
            return MethodCounts(*self._names, self._started, len(tallies), received, sent, handled, dict(self._refused), self._seconds.read())
