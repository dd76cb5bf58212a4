"""A client made of the generated code and the safetensors package alone, as docs/protocol.md describes it."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import torch
from safetensors.torch import load, save

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

MIB = 1 << 20
TIMEOUT = 30.0
INVALID = grpc.StatusCode.INVALID_ARGUMENT
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Client:
    """The stubs, for one table."""

    channel: grpc.Channel
    stub: ReplayBufferServiceStub
    table: str

    def create(self, buffer_size: int) -> bool:
        return self.stub.CreateTable(pb.CreateTableRequest(table=self.table, buffer_size=buffer_size), timeout=TIMEOUT).created

    def add(self, tensors: Tensors, batch_shape: tuple[int, ...] | None = None) -> pb.AddResponse:
        return self.stub.Add(pb.AddRequest(table=self.table, block=block(tensors, batch_shape)), timeout=TIMEOUT)

    def sample_batch(self, batch_size: int, *fields: str) -> Tensors:
        return one(self.stub.SampleBatch(pb.SampleBatchRequest(table=self.table, batch_size=batch_size, fields=fields), timeout=TIMEOUT))

    def sample_by_index(self, index: list[int], *fields: str) -> Tensors:
        return one(self.stub.SampleByIndex(pb.SampleByIndexRequest(table=self.table, index=index, fields=fields), timeout=TIMEOUT))

    def sample_all(self) -> Tensors:
        return one(self.stub.SampleAll(pb.SampleAllRequest(table=self.table), timeout=TIMEOUT))

    def describe(self) -> pb.DescribeResponse:
        return self.stub.Describe(pb.DescribeRequest(table=self.table), timeout=TIMEOUT)

    def call(self, name: str) -> Callable[..., bytes]:
        """A unary call that takes and gives the bytes of messages, as another protobuf library would make them."""
        return self.channel.unary_unary(f"/tdreplay.v1.ReplayBufferService/{name}")


class Requests:
    """The client's side of a stream: an iterator of what is sent, until `half_close`."""

    def __init__(self, *first: object) -> None:
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        for request in first:
            self.send(request)

    def send(self, request: object) -> None:
        self._queue.put(request)

    def half_close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[object]:
        return iter(self._queue.get, None)


def block(tensors: Tensors, batch_shape: tuple[int, ...] | None = None) -> bytes:
    return save(tensors, {"batch_shape": json.dumps(batch_shape or [len(next(iter(tensors.values())))])})


def transitions(n: int, start: int = 0) -> Tensors:
    """n rows, whose fields tell which rows they are."""
    number = torch.arange(start, start + n)
    return {"obs": number.float().unsqueeze(1).repeat(1, 2), "done": number % 2 == 0, "next.obs": number.float() + 1}


def batches(responses: Iterator[pb.SampleResponse]) -> Iterator[Tensors]:
    """Whole batches, put together from their blocks, whose places are checked."""
    parts: list[Tensors] = []
    done = 0
    for response in responses:
        assert response.first_row == done
        part = load(response.block)
        assert len({len(tensor) for tensor in part.values()}) == 1
        parts.append(part)
        done += len(next(iter(part.values())))
        assert done <= response.batch_rows
        if done == response.batch_rows:
            yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            parts, done = [], 0
    assert not parts


def one(responses: Iterator[pb.SampleResponse]) -> Tensors:
    (batch,) = batches(responses)
    return batch


def checked(batch: Tensors) -> list[int]:
    """Which of the `transitions` a batch holds, after checking that each is whole."""
    number = batch["obs"][:, 0].long()
    expected = {"obs": batch["obs"][:, :1].repeat(1, 2), "done": number % 2 == 0, "next.obs": number.float() + 1}
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    return number.tolist()


def refusal(error: grpc.RpcError) -> tuple[str | None, grpc.StatusCode]:
    """The name in the trailing metadata, and the status."""
    return dict(error.trailing_metadata()).get("tdreplay-error"), error.code()


def answers(client: Client, call: str, **fields: object) -> list[object]:
    """All answers to one request of a call of any arity."""
    request = getattr(pb, f"{call}Request")(**fields)
    method = pb.DESCRIPTOR.services_by_name["ReplayBufferService"].methods_by_name[call]
    answer = getattr(client.stub, call)(iter([request]) if method.client_streaming else request, timeout=TIMEOUT)
    return list(answer) if method.server_streaming else [answer]


GOOD = block(transitions(2))
