"""Calls that wait for a rate limiter keep no thread from calls that others need."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import grpc
import numpy as np
from safetensors.numpy import save

from tdreplay.rate_limiters import Queue
from tdreplay.samplers import Fifo
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

WORKERS = 4
THREADS = WORKERS + 64
"""So many calls run at once: max_workers, and some to spare."""


def test_calls_that_wait_for_a_full_queue_make_room_for_others():
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0", max_workers=WORKERS, max_streams=2)) as server,
        RemoteReplayBuffer(
            server.address, table="queue", buffer_size=4, sampler=Fifo(), max_times_sampled=1, rate_limiter=Queue(4), transport="grpc"
        ) as queue,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub, block = ReplayBufferServiceStub(channel), save({"x": np.arange(4.0)}, {"batch_shape": "[4]"})
        stub.Add(pb.AddRequest(table="queue", block=block), timeout=10)

        def add_more() -> None:
            with suppress(grpc.RpcError):  # It makes room for another call, or is ended with the server.
                stub.Add(pb.AddRequest(table="queue", block=block, wait_seconds=20), timeout=20)

        waiting = [threading.Thread(target=add_more, daemon=True) for _ in range(THREADS)]
        for call in waiting:
            call.start()
        deadline = time.monotonic() + 10
        while queue.describe().inserts.waiting < WORKERS:  # It asks again while no call waits for long enough to make room.
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # All of them wait by now, and are as many as there are threads.
        for _ in range(10):
            assert stub.Describe(pb.DescribeRequest(table="queue"), timeout=5).size == 4
    for call in waiting:
        call.join(20)
        assert not call.is_alive()
