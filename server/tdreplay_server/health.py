"""grpc.health.v1: whether the server serves, for Docker, Kubernetes and load balancers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tdreplay.v1 import replay_buffer_pb2

__all__ = ["Health"]

SERVICES = ("", replay_buffer_pb2.DESCRIPTOR.services_by_name["ReplayBufferService"].full_name)
"""The server as a whole, and its one service."""


class _Servicer(health.HealthServicer):  # type: ignore[misc]  # It ships no types.
    """The library's, without its deadlock.

    When a watcher leaves, it takes its lock in gRPC's event thread; whoever holds the lock may be waiting for that thread to send a message.
    """

    def __init__(self, watchers: ThreadPoolExecutor) -> None:
        super().__init__(experimental_non_blocking=True, experimental_thread_pool=watchers)
        self._watchers = watchers

    def _on_close_callback(self, send: Callable[[Any], None], service: str) -> Callable[[], object]:
        leave = super()._on_close_callback(send, service)
        return lambda: self._watchers.submit(leave)


class Health:
    """What the health service says of the server. Whoever watches it takes no worker from other calls."""

    def __init__(self) -> None:
        self._watchers = ThreadPoolExecutor(1, thread_name_prefix="tdreplay-health")
        self._servicer = _Servicer(self._watchers)

    def add_to(self, server: grpc.Server) -> None:
        """Serves it, and says that all is well."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        for service in SERVICES:
            self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Says, from now on, that the server does not serve."""
        self._servicer.enter_graceful_shutdown()

    def close(self) -> None:
        """Gives back what it holds."""
        self._watchers.shutdown(wait=False)
