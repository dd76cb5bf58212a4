"""Calls that are open and do nothing, by accident or on purpose, keep nobody else from being served."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensordict import TensorDict

from children import server_process
from conftest import rows
from tdreplay.errors import TRAILER
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.transport.guards import running

LOCAL = "127.0.0.1:0"
SERVICE = "tdreplay.v1.ReplayBufferService"
WORKERS = 16
HEALTH_SECONDS = 1.0
"""In a suite that runs two at a time on a busy machine. Alone it is a few milliseconds."""


@contextmanager
def header_calls(address: str, method: str, count: int):
    """Calls of which the client sends the headers, and nothing else."""
    over = threading.Event()

    def nothing():
        over.wait(60)
        return
        yield b""

    channels = [grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    try:
        calls = [channel.stream_stream(method)(nothing()) for channel, _ in zip(itertools.cycle(channels), range(count), strict=False)]
        yield calls
    finally:
        over.set()
        for channel in channels:
            channel.close()


def seconds_to_answer(address: str) -> float:
    """Of the health service, over a connection of its own."""
    start = time.monotonic()
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return time.monotonic() - start


@pytest.mark.parametrize(
    "method", ["Describe", "Add", "AddBatch", "Sample", "SampleBatch", "SampleAll", "Epoch", "Checkpoint", "grpc.health.v1.Health/Check", "Watch"]
)
def test_calls_without_a_request_stop_nobody(method):
    path = {"Watch": "/grpc.health.v1.Health/Watch"}.get(method, f"/{method}" if "/" in method else f"/{SERVICE}/{method}")
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=100, max_workers=WORKERS, max_streams=8)) as server:
        with header_calls(server.address, path, 400), RemoteReplayBuffer(server.address, timeout=20) as buffer:
            time.sleep(1)
            assert seconds_to_answer(server.address) < HEALTH_SECONDS
            buffer.add_batch(rows(50))
            assert (buffer.size, len(buffer.sample_batch(10)), len(list(buffer.create_epoch_iterator(25)))) == (50, 10, 2)
            assert seconds_to_answer(server.address) < HEALTH_SECONDS


def test_a_call_without_room_is_refused_under_its_name(monkeypatch, caplog):
    """A stream and a call that has just begun take all the room; the calls beside them are refused at once, and the log says which they were."""
    monkeypatch.setattr(running, "SPARE_THREADS", 0)
    caplog.set_level(logging.INFO, "tdreplay")
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=8, max_workers=2, max_streams=1)) as server, ExitStack() as stack:
        buffer = stack.enter_context(RemoteReplayBuffer(server.address, timeout=20))
        buffer.add_batch(rows(8))
        stream = stack.enter_context(buffer.stream(2))
        assert len(next(stream)) == 2
        calls = stack.enter_context(header_calls(server.address, f"/{SERVICE}/DropTable", 50))
        time.sleep(1)
        codes = {call.code(): dict(call.trailing_metadata()) for call in calls if call.done()}
        assert codes[grpc.StatusCode.RESOURCE_EXHAUSTED][TRAILER] == "OverloadedError"
        refused = [record.getMessage() for record in caplog.records if "max_workers" in record.getMessage()]
        assert refused
        assert all("call=DropTable" in line and "error=OverloadedError" in line for line in refused)
        assert len(next(stream)) == 2


def test_answers_that_nobody_takes_stop_nobody():
    """Many calls that read, none of whose answers is taken: they need no stream permit, and more than all the workers."""
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=8, max_workers=WORKERS, max_streams=8)) as server, ExitStack() as stack:
        buffer = stack.enter_context(RemoteReplayBuffer(server.address, timeout=20))
        buffer.add_batch(TensorDict({"frame": torch.zeros(8, 1 << 20, dtype=torch.uint8)}, [8]))
        channel = stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]))
        calls = [channel.unary_stream(f"/{SERVICE}/SampleBatch")(pb.SampleBatchRequest(batch_size=64).SerializeToString()) for _ in range(130)]
        time.sleep(1)
        for _ in range(3):
            assert seconds_to_answer(server.address) < HEALTH_SECONDS
            assert (buffer.size, len(buffer.sample_by_index([1, 2]))) == (8, 2)
        for call in calls:
            call.cancel()


STREAMS = 1000
STREAM_BYTES = 256 << 10
"""That an open stream may take of the server's memory, its thread and its connection's part among it."""


def test_a_thousand_streams_are_open_with_the_defaults_and_cost_little(tmp_path):
    """Actors are counted in hundreds, and each has a stream or two. All of them work, and afterwards their room is free again."""
    with server_process(ServerConfig(address=LOCAL, buffer_size=1000)) as server, ExitStack() as stack:
        process = psutil.Process(server.pid)
        with RemoteReplayBuffer(server.address, timeout=30) as buffer:
            buffer.add_batch(rows(100))
        before = process.memory_info().rss
        channels = [stack.enter_context(grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])) for _ in range(20)]
        opened = [open_stream(channel) for channel, _ in zip(itertools.cycle(channels), range(STREAMS), strict=False)]
        for requests, _ in opened:
            requests.put(pb.SampleRequest(credits=1))
        assert all(next(answers).batch_rows == 4 for _, answers in opened)
        each = (process.memory_info().rss - before) / STREAMS
        print(f"{each / 1024:.0f} KiB for each of {STREAMS} open streams, {process.num_threads()} threads")
        assert each < STREAM_BYTES
        assert seconds_to_answer(server.address) < HEALTH_SECONDS
        for requests, answers in opened:
            requests.put(None)
            assert next(answers, None) is None


def open_stream(channel: grpc.Channel):
    requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
    requests.put(pb.SampleRequest(table="default", batch_size=4))
    return requests, ReplayBufferServiceStub(channel).Sample(iter(requests.get, None), timeout=120)


@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_without_a_batch_end_at_once(shuffle):
    """Their number is the client's to choose, and nobody takes a batch in between."""
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=10)) as server, RemoteReplayBuffer(server.address, timeout=20) as buffer:
        buffer.add_batch(rows(10))
        for _ in range(3):
            assert list(buffer.create_epoch_iterator(11, 1 << 62, shuffle=shuffle, drop_last=True)) == []
        assert seconds_to_answer(server.address) < HEALTH_SECONDS


def test_a_stop_ends_calls_that_wait_for_their_client(tmp_path: Path):
    """Whatever they wait for: a first request, another one, or that an answer is taken."""
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=8, grace_seconds=1)) as server, ExitStack() as stack:
        buffer = stack.enter_context(RemoteReplayBuffer(server.address, timeout=20))
        buffer.add_batch(TensorDict({"frame": torch.zeros(8, 1 << 20, dtype=torch.uint8)}, [8]))
        stack.enter_context(header_calls(server.address, f"/{SERVICE}/AddBatch", 4))
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        unread = channel.unary_stream(f"/{SERVICE}/SampleBatch")(pb.SampleBatchRequest(batch_size=64).SerializeToString())
        opened = open_stream(channel)
        time.sleep(0.5)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 5
        unread.cancel()
        opened[1].cancel()
