"""grpc.health.v1: whether the server serves, for Docker, Kubernetes and load balancers.

It has guards and threads of its own, so that its calls are answered whatever the other calls do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tdreplay.v1 import replay_buffer_pb2
from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.metrics import CallCounts
from tdreplay_server.transport.guards.permits import Permits
from tdreplay_server.transport.guards.running import Running
from tdreplay_server.transport.guards.statuses import statuses

__all__ = ["Health"]

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]
SERVICES = frozenset({"", replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"].full_name})
"""What a client may ask for: the server as a whole, or its one service."""
MOST_CALLS, MOST_WATCHERS = 256, 128
LOOK_SECONDS = 0.5
"""How often a watcher looks for a change of which nobody woke it."""
Response = health_pb2.HealthCheckResponse


class Health:
    """What the health service says of the server.

    Attributes:
        counts: What was counted of its calls.
    """

    def __init__(self) -> None:
        self._status: int = Response.SERVING
        self._over = False
        self._changed = threading.Condition()
        self.counts, self._running = CallCounts(SERVICE), Running(MOST_CALLS)
        self._threads = CallThreads(self._running.threads, "tdreplay-health")

    def dispatch(self) -> Dispatch:
        """What serves the calls."""
        guards = (self.counts, statuses, self._running, Permits(MOST_WATCHERS, 0))
        return Dispatch(SERVICE, self, guards, self._running.admit, self._threads)

    def Check(self, request: Request, call: Call) -> Any:
        """Answers at once; NOT_FOUND for a service that the server does not have."""
        if request.head.service not in SERVICES:
            call.set_status(grpc.StatusCode.NOT_FOUND)
            return Response()
        return Response(status=self._status)

    def List(self, request: Request, call: Call) -> Any:
        """Every service, and whether it is served. Older versions of the health protocol do not have this call."""
        return health_pb2.HealthListResponse(statuses={name: Response(status=self._status) for name in SERVICES})

    def Watch(self, request: Request, call: Call) -> Iterator[Any]:
        """Answers at once, and again whenever the status changes."""
        call.on_end(self._look)  # A watcher that leaves is noticed.
        known, said = request.head.service in SERVICES, -1
        while not self._over and call.is_active:
            status = self._status if known else Response.SERVICE_UNKNOWN
            if status != said:
                said = status
                yield Response(status=status)
            with self._changed:
                self._changed.wait(LOOK_SECONDS)

    def _look(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Says, from now on, that the server does not serve."""
        self._status = Response.NOT_SERVING
        self._look()

    def close(self) -> None:
        """Ends the calls of those who watch, and its threads."""
        self._over = True
        self._look()
        self._running.stop(1.0)
        self._threads.shutdown(wait=False)
