"""The blocks of tests/golden/blocks, which clients in other languages test themselves with, are what its README says."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from tdreplay.block import decode, layout
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.memory import as_rows
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

FOLDER = Path(__file__).parents[1] / "golden" / "blocks"
VALID, INVALID = (sorted(path.stem for path in (FOLDER / kind).iterdir()) for kind in ("valid", "invalid"))


def golden(kind: str, name: str) -> bytes:
    return (FOLDER / kind / f"{name}.safetensors").read_bytes()


def listed(part: str) -> dict[str, str]:
    """The table of a part of the README: file -> its second cell."""
    text = (FOLDER / "README.md").read_text().split(f"## {part}\n")[1].split("\n## ")[0]
    return {name: cell.strip("`") for name, cell in re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", text, re.M)}


def counted(dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    """The values of a field, as the README says."""
    number = torch.arange(shape.numel())
    if dtype is torch.bool:
        return (number % 2 == 1).view(shape)
    return (torch.complex(number.float(), -number.float()) if dtype is torch.complex64 else number.to(dtype)).view(shape)


def test_the_readme_lists_every_block():
    assert sorted(listed("Valid")) == VALID
    assert sorted(listed("Invalid")) == INVALID


def test_every_dtype_is_in_a_block():
    assert {span.dtype for span in decode(np.frombuffer(golden("valid", "every-dtype"), np.uint8)).header.spans} == set(DTYPES.values())


@pytest.mark.parametrize("name", VALID)
def test_a_valid_block_has_these_rows(name):
    block = decode(np.frombuffer(golden("valid", name), np.uint8).copy())
    assert block.rows == int(listed("Valid")[name])
    for field, column in block.columns.items():
        assert torch.equal(as_bytes(column), as_bytes(counted(column.dtype, column.shape))), field


def as_bytes(column: torch.Tensor) -> torch.Tensor:
    return column.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("name", [name for name in VALID if name != "another-layout"])
def test_these_rows_become_that_block_byte_for_byte(name):
    block = decode(np.frombuffer(golden("valid", name), np.uint8).copy())
    fields = tuple(Field(span.name, span.dtype, span.shape[1:]) for span in reversed(block.header.spans))
    made = layout(fields, block.rows, block.batch_shape[1:], block.header.dim_names)
    memory = np.zeros(made.size, np.uint8)
    for field, place in made.write_header(memory).items():
        place[:] = as_rows(block.columns[field].contiguous())
    assert memory.tobytes() == golden("valid", name)


@pytest.fixture
def stub(address: str) -> ReplayBufferServiceStub:
    with grpc.insecure_channel(address) as channel:
        yield ReplayBufferServiceStub(channel)


@pytest.mark.parametrize("name", VALID)
def test_a_server_stores_a_valid_block_and_sends_its_rows(name, stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=10), timeout=20)
    assert stub.Add(pb.AddRequest(table=table, block=golden("valid", name)), timeout=20).rows == int(listed("Valid")[name])
    fields = [field.name for field in stub.Describe(pb.DescribeRequest(table=table), timeout=20).schema.fields]
    (sent,) = stub.SampleAll(pb.SampleAllRequest(table=table, fields=fields), timeout=20)
    for field, column in decode(np.frombuffer(sent.block, np.uint8).copy()).columns.items():
        assert torch.equal(as_bytes(column), as_bytes(counted(column.dtype, column.shape))), (field, DTYPE_NAMES[column.dtype])


@pytest.mark.parametrize("name", INVALID)
def test_a_server_refuses_an_invalid_block_with_this_error(name, stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=10), timeout=20)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Add(pb.AddRequest(table=table, block=golden("invalid", name)), timeout=20)
    assert dict(raised.value.trailing_metadata())["tdreplay-error"] == listed("Invalid")[name]
    state = stub.Describe(pb.DescribeRequest(table=table), timeout=20)
    assert (state.size, state.HasField("schema")) == (0, False)
