"""The metrics of the server's limits, and of its clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tdreplay.server_status import Limit
from tdreplay_server.monitoring.families import Labelled, gauge

__all__ = ["LimitMetrics"]


class LimitMetrics(Collector):
    """How much of each limit is used.

    Args:
        limits: The limits, each with what is used of it.
        clients: How many clients are connected, or were a moment ago.
    """

    def __init__(self, limits: Callable[[], Sequence[Limit]], clients: Callable[[], int]) -> None:
        self._limits, self._clients = limits, clients

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        limits = self._limits()
        most: Labelled = {(limit.name,): limit.limit for limit in limits}
        used: Labelled = {(limit.name,): limit.used for limit in limits if limit.used >= 0}
        yield gauge("tdreplay_limit", "A limit of the server: the setting of this name.", ("limit",), most)
        yield gauge("tdreplay_limit_used", "What of the limit is used, where that is counted.", ("limit",), used)
        yield gauge("tdreplay_clients", "Clients that have a call open, or had one in the last minute.", (), {(): self._clients()})
