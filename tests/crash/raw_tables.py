"""A table with a sampler, spoken to in messages of the proto alone: its calls go on over a server that is killed, and each row is stored once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import numpy as np
import torch

from compliance.server.stock_client import block, one
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

SECONDS = 60.0
"""Until a server must be back."""
QUICKLY = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

T = TypeVar("T")


class RawTable:
    """A table of a server. Its inserts are those of one writer."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.stub, self.name = ReplayBufferServiceStub(channel), name
        self._sequence = 0

    def create(self, buffer_size: int, **settings: Any) -> None:
        request = pb.CreateTableRequest(table=self.name, buffer_size=buffer_size, **settings)
        again(lambda: self.stub.CreateTable(request, timeout=SECONDS, wait_for_ready=True))

    def add(self, numbers: np.ndarray, priorities: np.ndarray | None = None, wait_seconds: float = SECONDS) -> int:
        """Stores rows once, and gives the first one's id."""
        tensors = {"number": torch.from_numpy(numbers)} | ({} if priorities is None else {"priority": torch.from_numpy(priorities)})
        self._sequence += 1
        request = pb.AddRequest(
            table=self.name,
            writer_id=f"writer of {self.name}",
            sequence=self._sequence,
            wait_seconds=wait_seconds,
            has_priorities=priorities is not None,
            block=block(tensors),
        )
        return again(lambda: self.stub.Add(request, timeout=SECONDS, wait_for_ready=True)).first_row_id

    def update(self, row_ids: np.ndarray, priorities: np.ndarray) -> tuple[int, int]:
        """How many rows were updated, and how many were stale."""
        request = pb.UpdatePrioritiesRequest(table=self.name, update=pb.PriorityUpdate(row_ids=row_ids, priorities=priorities))
        answer = again(lambda: self.stub.UpdatePriorities(request, timeout=SECONDS, wait_for_ready=True))
        return answer.updated, answer.stale

    def sample(self, rows: int, **query: Any) -> dict[str, np.ndarray]:
        """One random batch, with what is known of its draw. It is not asked for again where the server dies meanwhile."""
        request = pb.SampleBatchRequest(table=self.name, batch_size=rows, knows_priorities=True, **query)
        return {name: tensor.numpy() for name, tensor in one(self.stub.SampleBatch(request, timeout=SECONDS, wait_for_ready=True)).items()}

    def describe(self) -> pb.DescribeResponse:
        return again(lambda: self.stub.Describe(pb.DescribeRequest(table=self.name), timeout=SECONDS, wait_for_ready=True))


@contextmanager
def channel_to(address: str) -> Iterator[grpc.Channel]:
    """A channel that is there again soon after its server is."""
    with grpc.insecure_channel(address, options=QUICKLY + BIG) as channel:
        yield channel


def again(call: Callable[[], T]) -> T:
    """Calls until the server is there to answer."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() not in GONE or time.monotonic() > deadline:
                raise
