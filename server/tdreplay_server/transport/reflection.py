"""grpc.reflection.v1alpha: what the server's services and messages are, for tools such as grpcurl that have no proto.

The library's servicer answers. Its calls have threads and guards of their own here, so that nobody holds up the other calls with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.call_threads import CallThreads
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.metrics import CallCounts
from tdreplay_server.transport.guards.permits import Permits
from tdreplay_server.transport.guards.running import Running
from tdreplay_server.transport.guards.statuses import statuses

__all__ = ["Reflection"]

SERVICE = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
MOST_CALLS, MOST_STREAMS = 32, 16


class Reflection:
    """Describes services.

    Args:
        services: Their full names, this one's aside.

    Attributes:
        counts: What was counted of its calls.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer = reflection.ReflectionServicer((*services, SERVICE.full_name))
        self.counts, self._running = CallCounts(SERVICE), Running(MOST_CALLS)
        self._threads = CallThreads(self._running.threads, "tdreplay-reflection")

    def dispatch(self) -> Dispatch:
        """What serves the calls."""
        guards = (self.counts, statuses, self._running, Permits(MOST_STREAMS, 0))
        return Dispatch(SERVICE, self, guards, self._running.admit, self._threads)

    def ServerReflectionInfo(self, requests: Iterator[Request], call: Call) -> Iterator[Any]:
        """An answer to each request: the services, or the files that describe a symbol."""
        answers: Iterator[Any] = self._servicer.ServerReflectionInfo((request.head for request in requests), None)
        return answers

    def close(self) -> None:
        """Ends its calls and its threads."""
        self._running.stop(1.0)
        self._threads.shutdown(wait=False)
