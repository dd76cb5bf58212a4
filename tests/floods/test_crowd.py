"""The short form of ``make bench-crowd``: with the default settings, a thousand open streams of inserts and all others beside them are served."""

from __future__ import annotations

import grpc
from benchmarks.crowd import Crowd, measured, told
from benchmarks.load import block, stub_of

from children import server_process
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server import ServerConfig


def test_a_thousand_writers_and_sixteen_learners_are_all_served():
    with server_process(ServerConfig(address="127.0.0.1:0", buffer_size=10_000)) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub_of(channel).Add(pb.AddRequest(table="default", block=block(1000)), timeout=60)
        crowd = Crowd(server.address, seconds=3.0, pace=0.5, looks=50.0)
        found = measured(crowd, server.pid)
    print(told(found, crowd))
    assert found.refused == {}
    assert min(found.inserted) >= 1
    assert min(found.batches) >= 1
    assert len(found.health) > 10
    assert len(found.describe) > 10
    assert found.threads < 1200
