"""All metrics of one server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from tdreplay_server.monitoring.call_metrics import CallMetrics
from tdreplay_server.monitoring.limit_metrics import LimitMetrics
from tdreplay_server.monitoring.process_metrics import ProcessMetrics
from tdreplay_server.monitoring.table_metrics import TableMetrics
from tdreplay_server.tables.registry import Tables
from tdreplay_server.transport.grpc_server import GrpcServer

__all__ = ["registry_of"]


def registry_of(tables: Tables, calls: GrpcServer, data_dir: Path | None, has_failed: Callable[[], bool]) -> CollectorRegistry:
    """A registry with the metrics of one server, so that there may be several in a process. They are computed when somebody asks.

    Args:
        tables: Of the server.
        calls: What serves its calls.
        data_dir: Where its rows lie.
        has_failed: Whether its disk has failed.
    """
    registry = CollectorRegistry(auto_describe=False)
    limits = LimitMetrics(lambda: (*calls.limits(), tables.used()), lambda: len(calls.clients.connected()))
    for collector in (CallMetrics(calls.counts), limits, TableMetrics(tables.counts), ProcessMetrics(data_dir, has_failed, tables.shard)):
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
