"""The metrics of calls. Their names are those of go-grpc-prometheus, which dashboards know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tdreplay_server.monitoring.families import Distributions, Labelled, counter, gauge, histogram
from tdreplay_server.transport.guards.metrics import CallCounts, MethodCounts

__all__ = ["CallMetrics"]

LABELS = ("grpc_type", "grpc_service", "grpc_method")


class CallMetrics(Collector):
    """What was counted of calls.

    Args:
        counts: Of each service.
    """

    def __init__(self, counts: Sequence[CallCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        methods = {(method.kind, method.service, method.method): method for counts in self._counts for method in counts.read()}

        def of(number: Callable[[MethodCounts], float]) -> Labelled:
            return {names: number(method) for names, method in methods.items()}

        handled: Labelled = {(*names, code): number for names, method in methods.items() for code, number in method.handled.items()}
        refused: Labelled = {(method.method, *reason): number for method in methods.values() for reason, number in method.refused.items()}
        yield counter("grpc_server_started_total", "Calls that began.", LABELS, of(lambda method: method.started))
        yield counter("grpc_server_handled_total", "Calls that ended, by status.", (*LABELS, "grpc_code"), handled)
        yield counter("grpc_server_msg_received_total", "Messages of clients.", LABELS, of(lambda method: method.received))
        yield counter("grpc_server_msg_sent_total", "Messages to clients.", LABELS, of(lambda method: method.sent))
        seconds: Distributions = {names: method.seconds for names, method in methods.items()}
        yield histogram("grpc_server_handling_seconds", "What calls took, from their first moment to their last.", LABELS, seconds)
        yield gauge("tdreplay_open_calls", "Calls that are open: streams, and calls at work.", LABELS, of(lambda method: method.open))
        text = "Calls that ended with an error, by the class of the error and the limit that is its reason."
        yield counter("tdreplay_refused_calls_total", text, ("grpc_method", "error", "limit"), refused)
