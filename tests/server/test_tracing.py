"""Spans of calls, in the server and in the client."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator

import grpc
import pytest
import untraced_client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode

from children import child_of
from conftest import rows
from tdreplay.errors import SlotIndexError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

LOCAL = "127.0.0.1:0"
SERVICE = "tdreplay.v1.ReplayBufferService"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Of the tracer provider of this process, which can be set once."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture(scope="module")
def server(exporter) -> Iterator[ReplayServer]:
    with ReplayServer(ServerConfig(address=LOCAL, tracing=True, buffer_size=100)) as running:
        with RemoteReplayBuffer(running.address) as buffer:
            buffer.add_batch(rows(10))
        yield running


@pytest.fixture(autouse=True)
def _no_spans_yet(exporter) -> None:
    exporter.clear()


def span_of(exporter: InMemorySpanExporter, method: str, kind: SpanKind, root: Span | None = None) -> ReadableSpan:
    """The span of the one call of a method, below `root` if that is given, once it ended: the server's may end after the client has its answer."""
    for _ in range(1000):
        found = [span for span in exporter.get_finished_spans() if (span.name, span.kind) == (f"{SERVICE}/{method}", kind)]
        if root is not None:
            found = [span for span in found if span.context.trace_id == root.get_span_context().trace_id]
        if found:
            (span,) = found
            return span
        threading.Event().wait(0.01)
    raise AssertionError(f"{method} has no span of the {kind.name}")


def test_a_span_of_the_server_is_a_child_of_the_clients_which_is_one_of_the_programs(exporter, server):
    with RemoteReplayBuffer(server.address) as buffer:
        buffer.describe()  # The first call makes another one before it.
        with trace.get_tracer("test").start_as_current_span("training") as training:
            buffer.describe()
    ours, theirs = (span_of(exporter, "Describe", kind, training) for kind in (SpanKind.CLIENT, SpanKind.SERVER))
    assert ours.parent.span_id == training.get_span_context().span_id
    assert theirs.parent.span_id == ours.context.span_id
    assert theirs.context.trace_id == ours.context.trace_id == training.get_span_context().trace_id
    for span in (ours, theirs):
        assert dict(span.attributes).items() >= {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": "Describe"}.items()
        assert span.attributes["rpc.grpc.status_code"] == 0
        assert span.status.status_code is StatusCode.UNSET
    assert theirs.attributes["network.peer.address"].startswith("ipv4:127.0.0.1")


def test_any_clients_traceparent_is_the_parent_and_one_that_is_none_is_ignored(exporter, server):
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with grpc.insecure_channel(server.address) as channel:
        stub = ReplayBufferServiceStub(channel)
        stub.ListTables(pb.ListTablesRequest(), metadata=(("traceparent", parent),), timeout=10)
        assert span_of(exporter, "ListTables", SpanKind.SERVER).parent.span_id == int("cd" * 8, 16)
        exporter.clear()
        stub.ListTables(pb.ListTablesRequest(), metadata=(("traceparent", "00-zz-" + "x" * 500), ("trace-bin", b"\0")), timeout=10)
        assert span_of(exporter, "ListTables", SpanKind.SERVER).parent is None


def test_a_call_that_its_client_got_wrong_is_no_error_of_the_server(exporter, server):
    with RemoteReplayBuffer(server.address) as buffer, pytest.raises(SlotIndexError):
        buffer.sample_by_index([99])
    ours, theirs = (span_of(exporter, "SampleByIndex", kind) for kind in (SpanKind.CLIENT, SpanKind.SERVER))
    number = grpc.StatusCode.OUT_OF_RANGE.value[0]
    assert ours.attributes["rpc.grpc.status_code"] == theirs.attributes["rpc.grpc.status_code"] == number
    assert (ours.status.status_code, theirs.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert theirs.attributes["error.type"] == "SlotIndexError"
    assert theirs.attributes["tdreplay.request_id"]


def test_a_stream_is_one_span_and_its_batches_come_as_they_are_asked_for(exporter, server):
    """Interceptors that read all requests, or all answers, before they let one through would stall it."""
    with RemoteReplayBuffer(server.address, timeout=10) as buffer:
        with buffer.stream(4, prefetch=2) as batches:
            for _ in range(50):
                next(batches)
            assert not [span for span in exporter.get_finished_spans() if span.name.endswith("/Sample")]
        with buffer.writer() as writer:
            for row in rows(5):
                writer.append(row)
    ours, theirs = (span_of(exporter, "Sample", kind) for kind in (SpanKind.CLIENT, SpanKind.SERVER))
    assert ours.attributes["rpc.grpc.status_code"] == theirs.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert theirs.parent.span_id == ours.context.span_id
    assert not theirs.events
    assert len(exporter.get_finished_spans()) <= 8


def test_a_server_without_the_setting_makes_no_spans(exporter, address):
    with grpc.insecure_channel(address) as channel:
        ReplayBufferServiceStub(channel).ListTables(pb.ListTablesRequest(), timeout=10)
    # A stream of a test before this one may end now.
    assert not [span for span in exporter.get_finished_spans() if span.name.endswith("ListTables")]


def test_without_the_package_the_setting_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "opentelemetry" else real(name, package))
    with pytest.raises(ValueError, match=r"tracing\n.*needs opentelemetry-api.*pip install 'tdreplay\[server,tracing\]'"):
        ServerConfig(tracing=True)
    assert not ServerConfig(tracing=False).tracing


def test_a_client_whose_program_does_not_trace_loads_nothing_of_it(address):
    with child_of(untraced_client.describe, address) as child:
        assert child.line == "[]"
