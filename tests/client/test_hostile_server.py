"""A server that answers wrongly: a client says so with a typed error, within its timeout, and loses and allocates nothing."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
import pytest
import torch
from given_answers import answering_server
from tensordict import TensorDict

from tdreplay.block import layout
from tdreplay.errors import CodecError, InternalError, ReplayError, ResourceExhaustedError
from tdreplay.fields import Field
from tdreplay.system_fields import SENT_FIELDS
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer

A = Field("a", torch.float32, (2,))
ROW = TensorDict({"a": torch.zeros(2)}, [])


def block(rows: int, *fields: Field, row_shape: tuple[int, ...] = ()) -> bytes:
    made = layout(fields or (A, *SENT_FIELDS), rows, row_shape)
    return made.header + bytes(made.data_size)


def describe(_request: pb.DescribeRequest, _context: grpc.ServicerContext) -> pb.DescribeResponse:
    return pb.DescribeResponse(buffer_size=10, size=5, write_count=5, storing_device="cpu", generation_id="a")


def server(**calls: Callable[..., Any]) -> AbstractContextManager[str]:
    """A server whose calls are these functions; gives its address."""
    return answering_server(**{"Describe": describe, **calls})


@contextmanager
def buffer_of(**calls: Callable[..., Any]) -> Iterator[RemoteReplayBuffer]:
    with server(**calls) as address, RemoteReplayBuffer(address, timeout=5, transport="grpc") as buffer:
        yield buffer


def answering(kind: Any, blocks: list[dict[str, Any]]) -> Callable[..., Iterator[Any]]:
    """A call that answers with these blocks, whatever it is asked."""

    def call(requests: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
        if isinstance(requests, Iterator):
            next(requests)
        yield from (kind(**fields) for fields in blocks)
        if isinstance(requests, Iterator):
            for _ in requests:
                pass

    return call


WRONG_BATCHES: dict[str, list[dict[str, Any]]] = {
    "no block": [{}],
    "0 rows": [{"batch_rows": 0, "block": block(3)}],
    "0 of 0 rows": [{"batch_rows": 0, "block": block(0)}],
    "0 of 4 rows": [{"batch_rows": 4, "block": block(0)}],
    "fewer than 0": [{"batch_rows": -2, "block": block(4)}],
    "far too many": [{"batch_rows": 1 << 62, "block": block(4)}],
    "more than there is memory for": [{"batch_rows": 1 << 50, "block": block(4)}],
    "more than asked for": [{"batch_rows": 7, "block": block(7)}],
    "a later part first": [{"batch_rows": 4, "first_row": 2, "block": block(2)}],
    "another dtype": [{"batch_rows": 4, "block": block(2, A)}, {"batch_rows": 4, "first_row": 2, "block": block(2, Field("a", torch.float64, (2,)))}],
    "another shape": [{"batch_rows": 4, "block": block(2, A)}, {"batch_rows": 4, "first_row": 2, "block": block(2, Field("a", torch.float32, (9,)))}],
    "a part that makes the batch larger": [{"batch_rows": 3, "block": block(2, A)}, {"batch_rows": 4, "first_row": 2, "block": block(2, A)}],
    "a part after the end": [{"batch_rows": 4, "block": block(2, A)}, {"batch_rows": 1, "first_row": 2, "block": block(2, A)}],
    "no fields": [{"batch_rows": 4, "block": layout((), 4, ()).header}],
    "a parent that is a field": [{"batch_rows": 4, "block": block(4, A, Field("a.b", torch.float32, ()))}],
    "empty names": [{"batch_rows": 4, "block": block(4, Field("..", torch.float32, ()))}],
    "names without end": [{"batch_rows": 4, "block": block(4, Field(".".join("a" * 9000), torch.float32, ()))}],
    "an index of other shapes": [{"batch_rows": 4, "block": block(4, A, Field("index", torch.int64, (7,)), row_shape=())}],
}


@pytest.mark.parametrize("blocks", WRONG_BATCHES.values(), ids=WRONG_BATCHES.keys())
def test_a_batch_that_is_none_is_a_typed_error(blocks):
    calls = {"SampleBatch": pb.SampleBatchResponse, "Sample": pb.SampleResponse, "Epoch": pb.EpochResponse, "SampleByIndex": pb.SampleByIndexResponse}
    with buffer_of(**{name: answering(kind, blocks) for name, kind in calls.items()}) as buffer:
        reads = (lambda: buffer.sample_batch(4), lambda: buffer.sample_by_index(range(4)), lambda: next(buffer.create_epoch_iterator(4)))
        for read in (*reads, lambda: next(buffer.stream(4))):
            with pytest.raises((CodecError, ResourceExhaustedError)):
                read()


@pytest.mark.parametrize("batches", [0, 2])
def test_one_batch_is_one(batches):
    answer = answering(pb.SampleBatchResponse, [{"batch_rows": 4, "block": block(4)}] * batches)
    with buffer_of(SampleBatch=answer) as buffer, pytest.raises(CodecError, match=r"no batch|more than one batch"):
        buffer.sample_batch(4)


def test_a_batch_larger_than_the_memory_is_named():
    answer = answering(pb.SampleAllResponse, [{"batch_rows": 1 << 50, "block": block(4)}])
    with buffer_of(SampleAll=answer) as buffer, pytest.raises(ResourceExhaustedError, match=f"no memory for a batch of {1 << 50} rows"):
        buffer.sample_all()


def test_batches_that_were_not_granted_are_not_kept():
    def sample(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.SampleResponse]:
        while context.is_active():
            yield pb.SampleResponse(batch_rows=4, block=block(4))

    with buffer_of(Sample=sample) as buffer, buffer.stream(4, prefetch=2) as batches:
        reader = next(thread for thread in threading.enumerate() if thread.name == "tdreplay-reader")
        reader.join(20)  # It ends where a batch comes that was not granted: nothing was taken yet.
        with pytest.raises(InternalError, match="more batches than"):
            list(itertools.islice(batches, 3))


@pytest.mark.parametrize("rows", [0, -1, 2, 1 << 62])
def test_what_is_acknowledged_must_be_what_was_sent(rows):
    def add_batch(requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[pb.AddBatchResponse]:
        return (pb.AddBatchResponse(rows=rows) for _ in requests)

    with buffer_of(AddBatch=add_batch) as buffer:
        with pytest.raises(InternalError, match=f"acknowledged {rows} of 1 rows"):
            buffer.add(ROW)
        with buffer.writer() as writer:
            writer.append(ROW)
            with pytest.raises(InternalError, match=f"acknowledged {rows} of 1 rows") as raised:
                writer.flush()
        assert len(raised.value.rows) == 1


def test_a_single_call_must_acknowledge_its_rows_too():
    def no_room(_requests: Iterator[Any], context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("tdreplay-error", "StreamLimitError"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")

    with buffer_of(AddBatch=no_room, Add=lambda *_: pb.AddResponse(rows=0)) as buffer, pytest.raises(InternalError, match="acknowledged 0 of 1 rows"):
        buffer.add(ROW)


def fields(*specs: tuple[str, str, list[int]], **more: Any) -> pb.Schema:
    return pb.Schema(fields=[pb.FieldSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in specs], **more)


WRONG_STATES = {
    "no device": pb.DescribeResponse(),
    "another device": pb.DescribeResponse(storing_device="abacus"),
    "a device with a line of its own": pb.DescribeResponse(storing_device="cpu\nforged"),
    "a size below 0": pb.DescribeResponse(storing_device="cpu", size=-1),
    "more rows than slots": pb.DescribeResponse(storing_device="cpu", buffer_size=1, size=2),
    "no dtype": pb.DescribeResponse(storing_device="cpu", schema=fields(("a", "F7", []))),
    "a shape below 0": pb.DescribeResponse(storing_device="cpu", schema=fields(("a", "F32", [-1]))),
    "a shape without end": pb.DescribeResponse(storing_device="cpu", schema=fields(("a", "F32", [1 << 40, 1 << 40]))),
    "a parent that is a field": pb.DescribeResponse(storing_device="cpu", schema=fields(("a", "F32", []), ("a.b", "F32", []))),
    "names of other dimensions": pb.DescribeResponse(storing_device="cpu", schema=fields(("a", "F32", []), dim_names=["x", "y", "z"])),
}


@pytest.mark.parametrize("state", WRONG_STATES.values(), ids=WRONG_STATES.keys())
def test_a_state_that_cannot_be_is_a_typed_error(state):
    with server(Describe=lambda *_: state) as address, pytest.raises(CodecError):
        RemoteReplayBuffer(address, timeout=5)


def test_the_text_of_an_error_is_one_short_line_in_the_log_too(caplog):
    def forging(_request: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone\n2026-01-01 all is well\x1b[2J" + "!" * 3000)

    with server(ListTables=forging) as address, caplog.at_level(logging.WARNING, "tdreplay"), pytest.raises(ReplayError) as raised:
        RemoteReplayBuffer.tables(address, timeout=2)
    for text in (str(raised.value), *caplog.messages):
        assert text.isprintable()
        assert len(text) < 2000
    assert caplog.messages
