"""Raw gRPC clients that load a server: many in a process, because they need neither torch nor tdreplay's client. Run in processes of their own."""

from __future__ import annotations

import itertools
import json
import queue
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

__all__ = ["ROW_BYTES", "Load", "block", "count_batches", "count_rows", "stub_of", "time_calls"]

OBS = 32
ROW_BYTES = 4 * OBS + 8
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]


def stub_of(channel: grpc.Channel) -> Any:
    """The service's calls, as the generated code has them."""
    return ReplayBufferServiceStub(channel)  # type: ignore[no-untyped-call]  # It has no types.


@dataclass(frozen=True)
class Load:
    """What the clients of one process do, from `begin` (time.monotonic) on.

    Attributes:
        address: of the server.
        clients: that the process has, each with a connection of its own.
        rows: of a batch, or of an inserted block.
        in_flight: batches that are granted, or blocks that are not acknowledged, at a time.
        begin: when the counting starts.
        seconds: that it goes on for.
    """

    address: str
    clients: int
    rows: int
    in_flight: int
    begin: float
    seconds: float

    @property
    def end(self) -> float:
        """When the counting ends."""
        return self.begin + self.seconds


def block(rows: int) -> bytes:
    """A block of so many rows with an ``obs`` of 32 floats and an ``action``: 136 bytes a row."""
    sizes = {"action": ("I64", [rows], 8 * rows), "obs": ("F32", [rows, OBS], 4 * OBS * rows)}
    entries: dict[str, Any] = {"__metadata__": {"batch_shape": json.dumps([rows])}}
    start = 0
    for name, (dtype, shape, size) in sizes.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    values = np.arange(rows, dtype=np.int64).tobytes() + np.random.default_rng(0).random((rows, OBS), np.float32).tobytes()
    return struct.pack("<Q", len(header)) + header + values


def _together(load: Load, client: Callable[[Load, list[float]], None], out: Any) -> None:
    """Runs so many clients in threads, and puts what they counted into `out`: one list."""
    counts: list[float] = []
    threads = [threading.Thread(target=client, args=(load, counts), daemon=True) for _ in range(load.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, load.end - time.monotonic()) + 5.0)
    out.put(counts)


def count_batches(load: Load, out: Any) -> None:
    """Learners, each with a Sample stream: batches that came."""
    _together(load, _learner, out)


def _learner(load: Load, counts: list[float]) -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(pb.SampleRequest(table="default", batch_size=load.rows, credits=load.in_flight))
    with grpc.insecure_channel(load.address, options=OPTIONS) as channel:
        counts.append(_counted(load, stub_of(channel).Sample(iter(requests.get, None)), lambda: pb.SampleRequest(credits=1), requests))


def count_rows(load: Load, out: Any) -> None:
    """Writers, each with an AddBatch stream of numbered blocks: rows that were acknowledged."""
    _together(load, _writer, out)


def _writer(load: Load, counts: list[float]) -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    body, writer, numbers = block(load.rows), uuid.uuid4().hex, itertools.count(1)

    def insert() -> Any:
        return pb.AddBatchRequest(table="default", block=body, writer_id=writer, sequence=next(numbers))

    for _ in range(load.in_flight):
        requests.put(insert())
    with grpc.insecure_channel(load.address, options=OPTIONS) as channel:
        counts.append(load.rows * _counted(load, stub_of(channel).AddBatch(iter(requests.get, None)), insert, requests))


def _counted(load: Load, answers: Iterator[Any], again: Callable[[], Any], requests: queue.SimpleQueue[Any]) -> int:
    """Answers that come while it counts; each is followed by another request."""
    count = 0
    threading.Timer(load.end - time.monotonic(), answers.cancel).start()  # type: ignore[attr-defined]
    try:
        for _ in answers:
            count += time.monotonic() >= load.begin
            requests.put(again())
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise
    requests.put(None)
    return count


def time_calls(load: Load, out: Any) -> None:
    """One client that makes single calls, one after the other: the seconds of each, for SampleBatch and for Describe."""
    found: dict[str, list[float]] = {"SampleBatch": [], "Describe": []}
    with grpc.insecure_channel(load.address, options=OPTIONS) as channel:
        stub = stub_of(channel)
        calls: dict[str, Callable[[], Any]] = {
            "SampleBatch": lambda: list(stub.SampleBatch(pb.SampleBatchRequest(table="default", batch_size=load.rows), timeout=30)),
            "Describe": lambda: stub.Describe(pb.DescribeRequest(table="default"), timeout=30),
        }
        time.sleep(max(0.0, load.begin - time.monotonic()))
        while time.monotonic() < load.end:
            for name, call in calls.items():
                start = time.monotonic()
                try:
                    call()
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        raise
                found[name].append(time.monotonic() - start)
    out.put(found)
