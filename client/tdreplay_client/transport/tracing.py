"""Spans of calls for OpenTelemetry, where the program uses it: it is there, and the program has set a tracer provider. Else nothing happens.

Nothing is imported here before the program did it itself, so that a client without tracing pays for one look into a dict.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, TracebackType
from typing import Any

import grpc

__all__ = ["CallSpan", "begin_span"]

Metadata = Sequence[tuple[str, str]]


class CallSpan:
    """The span of one call, from its first moment to its last. A stream has one, however many messages it has.

    Attributes:
        metadata: What is sent with the call: what was to be sent, and the traceparent, by which the server's span becomes a child of this one.

    Args:
        trace: ``opentelemetry.trace``.
        service, method: What is called.
        metadata: What was to be sent.
    """

    def __init__(self, trace: Any, service: str, method: str, metadata: Metadata) -> None:
        from opentelemetry import propagate  # Here: opentelemetry is there, because the program uses it.

        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        self._trace = trace
        self._span = trace.get_tracer("tdreplay_client").start_span(f"{service}/{method}", kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        self.metadata: Metadata = (*metadata, *carrier.items())

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Ends the span with what a call with one answer ended with."""
        if error is None:
            self.end(grpc.StatusCode.OK)
        else:
            self.end(error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.CANCELLED)

    def end(self, code: grpc.StatusCode) -> None:
        """Ends the span with the status of the call."""
        number: int = code.value[0]
        self._span.set_attribute("rpc.grpc.status_code", number)
        if code is not grpc.StatusCode.OK:
            self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, code.name))
        self._span.end()

    def end_with(self, call: Any) -> None:
        """Ends the span when a stream ends, however it ends."""
        call.add_done_callback(lambda ended: self.end(ended.code()))


def begin_span(service: str, method: str, metadata: Metadata) -> CallSpan | None:
    """The span of a call that is about to be made, within the span that is current in this thread. None: the program does not trace."""
    trace = sys.modules.get("opentelemetry.trace")
    return CallSpan(trace, service, method, metadata) if trace is not None and _is_set_up(trace) else None


def _is_set_up(trace: ModuleType) -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
