"""The server says whether it serves, and what runs when it is told to stop is finished."""

from __future__ import annotations

import os
import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from children import server_process
from conftest import numbers, rows
from tdreplay.v1 import replay_buffer_pb2, replay_buffer_pb2_grpc
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

LOCAL = "127.0.0.1:0"
ROW_BYTES = 33
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", "tdreplay.v1.ReplayBufferService"])
def test_a_running_server_serves(address, service):
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING


def test_an_unknown_service_is_not_found(address):
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"), timeout=10)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_many_watchers_take_no_worker_from_other_calls():
    with ReplayServer(ServerConfig(address=LOCAL, buffer_size=10, max_workers=2, max_streams=1)) as server:
        with grpc.insecure_channel(server.address) as channel, RemoteReplayBuffer(server.address, timeout=10) as buffer:
            watches = [health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(8)]
            assert [next(watch).status for watch in watches] == [SERVING] * 8
            buffer.add_batch(rows(3))
            assert buffer.size == 3
            for watch in watches:
                watch.cancel()


def test_a_server_that_stops_says_so_and_finishes_what_runs(tmp_path):
    """A client is reading all rows when SIGTERM comes: watchers hear of it, new calls are refused, it gets the rest, and the exit status is 0."""
    with server_process(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=1_000_000, grace_seconds=60)) as server:
        with RemoteReplayBuffer(server.address, timeout=60) as buffer, grpc.insecure_channel(server.address) as channel:
            buffer.add_batch(rows(1_000_000))
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == SERVING
            running = replay_buffer_pb2_grpc.ReplayBufferServiceStub(channel).SampleAll(
                replay_buffer_pb2.SampleAllRequest(table="default"), timeout=60
            )
            received = next(running).ByteSize()
            os.kill(server.pid, signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            watch.cancel()
            with grpc.insecure_channel(server.address) as other:
                assert health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=5).status == NOT_SERVING
                for _ in range(100):
                    with pytest.raises(grpc.RpcError) as raised:
                        replay_buffer_pb2_grpc.ReplayBufferServiceStub(other).Describe(replay_buffer_pb2.DescribeRequest(), timeout=5)
                    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            received += sum(message.ByteSize() for message in running)
            assert running.code() is grpc.StatusCode.OK
            assert received > 1_000_000 * ROW_BYTES


def test_a_checkpoint_that_runs_when_the_server_stops_is_finished(tmp_path):
    with server_process(ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=2_000_000, grace_seconds=30)) as server:
        with RemoteReplayBuffer(server.address, timeout=60) as buffer:
            buffer.add_batch(rows(1_000_000))
            running, done = threading.Event(), []
            thread = threading.Thread(target=lambda: done.append(buffer.checkpoint("last", progress=lambda *_: running.set())))
            thread.start()
            assert running.wait(30)
            os.kill(server.pid, signal.SIGTERM)
            thread.join(60)
            assert [made.rows for made in done] == [1_000_000]


def test_what_was_acknowledged_before_a_stop_is_there_after_it(tmp_path):
    config = ServerConfig(address=LOCAL, data_dir=tmp_path / "data", buffer_size=100_000)
    acknowledged = []
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, timeout=0.5) as buffer:

        def push() -> None:
            try:
                while True:
                    buffer.add_batch(rows(10, 10 * len(acknowledged)))
                    acknowledged.append(None)
            except ConnectionError:
                return

        thread = threading.Thread(target=push)
        thread.start()
        time.sleep(0.5)
        server.stop()
        thread.join(20)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address) as buffer:
        stored = numbers(buffer.sample_all())
        assert stored == list(range(len(stored)))
        assert 10 * len(acknowledged) <= len(stored) <= 10 * (len(acknowledged) + 1)
