"""The guard that makes a span of each call for OpenTelemetry, where the setting `tracing` says so.

A stream is one span, however many messages it has. The process's tracer provider says where spans go: opentelemetry-api alone sends them nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from tdreplay_server.transport.call import Call, Request
from tdreplay_server.transport.guards.guard import Answer, Proceed

__all__ = ["Tracing"]

FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The statuses that are errors of a server: OpenTelemetry's conventions for gRPC. The others are errors of its clients."""


class Tracing:
    """Makes the spans of the calls of one service, with the attributes that OpenTelemetry's conventions for RPC name.

    Args:
        service: The full name of the service.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    @property
    def _tracer(self) -> Tracer:
        """Asked for anew by each call: the provider may be set after the server was made."""
        return trace.get_tracer("tdreplay_server")

    def __call__(self, requests: Iterator[Request], call: Call, proceed: Proceed) -> Iterator[Answer]:
        """Ends the span when the call ends. It is a child of the span whose traceparent the client sent.

        The span is not made the current one of the thread: a stream's generator may be ended by another thread, and nobody behind this guard asks.
        """
        parent = propagate.extract(_texts(call.metadata))
        span = self._tracer.start_span(f"{self._service}/{call.method}", parent, SpanKind.SERVER, self._attributes(call))
        try:
            yield from proceed(requests, call)
        finally:
            _end(span, call)

    def _attributes(self, call: Call) -> Mapping[str, str]:
        return {"rpc.system": "grpc", "rpc.service": self._service, "rpc.method": call.method, "network.peer.address": call.peer}


def _texts(metadata: Mapping[str, str | bytes]) -> Mapping[str, str]:
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _end(span: Span, call: Call) -> None:
    outcome, (error, _) = call.outcome, call.refusal
    number: int = outcome.value[0]
    span.set_attribute("rpc.grpc.status_code", number)
    if error:
        span.set_attributes({"error.type": error, "tdreplay.request_id": call.request_id})
    if outcome in FAULTS:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end()
