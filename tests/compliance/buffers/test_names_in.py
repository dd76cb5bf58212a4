"""Names of dimensions come back, and the server's own fields are told from a user's."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.block import decode, layout
from tdreplay.errors import CodecError, SchemaError
from tdreplay.fields import Field
from tdreplay.system_fields import SENT_FIELDS
from tdreplay.v1.replay_buffer_pb2 import AddRequest
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer

# -- names of dimensions ----------------------------------------------------------------------------------------------------------------------


def named(*names: str | None) -> TensorDict:
    return TensorDict({"x": torch.arange(12.0).view(4, 3), "n": TensorDict({"y": torch.zeros(4, 3)}, [4, 3])}, [4, 3], names=list(names))


@pytest.mark.parametrize("names", [("env", "time"), (None, "time"), ("env", None)])
def test_names_of_dimensions_come_back(make_buffer, names):
    buffer = make_buffer(20)
    buffer.add_batch(named(*names))
    buffer.add_batch(named(None, None))
    buffer.add(named(*names)[0])
    assert (buffer.state().schema.dim_names, len(buffer)) == (names, 9)
    for batch in (buffer.sample_all(), buffer.sample_batch(5), buffer.sample_by_index([1, 2]), next(iter(buffer.create_epoch_iterator(3)))):
        assert batch.names == batch["n"].names == list(names)


def test_names_of_dimensions_come_back_from_streams_and_writers(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=20) as buffer:
        with buffer.writer() as writer:
            writer.extend(named("env", "time"))
            writer.append(named("env", "time")[0])
        with buffer.stream(5) as batches:
            assert next(batches).names == ["env", "time"]
        assert buffer.sample_all().names == ["env", "time"]


@pytest.mark.parametrize(("first", "then"), [((None, None), ("env", None)), (("env", "time"), ("time", "env")), ((None, "time"), (None, "step"))])
def test_names_that_would_be_lost_are_refused(make_buffer, first, then):
    buffer = make_buffer(20)
    buffer.add_batch(named(*first))
    with pytest.raises(SchemaError, match=r"names of the dimensions.*got .*; a batch without names is taken"):
        buffer.add_batch(named(*then))
    assert len(buffer) == 4


def test_names_of_an_inner_tensordict_alone_are_refused(make_buffer):
    batch = named(None, None)
    batch["n"].names = ["env", "time"]
    assert batch.names == [None, None]
    buffer = make_buffer(20)
    with pytest.raises(SchemaError, match=r"'n'.*names.*env"):
        buffer.add_batch(batch)


def test_names_of_dimensions_outlive_the_process(in_process, tmp_path):
    with in_process(10, directory=tmp_path / "rows") as buffer:
        buffer.add_batch(named("env", "time"))
    with in_process(10, directory=tmp_path / "rows") as buffer:
        assert buffer.sample_all().names == ["env", "time"]


@pytest.mark.parametrize("names", ["x", "{}", '["a"]', '["a", "a"]', '["a", 1]', '["a\\n", null]', '["", null]', 5])
def test_a_block_whose_names_of_dimensions_cannot_be_is_refused(names):
    memory = block_with_names(names)
    with pytest.raises(CodecError, match="dim_names"):
        decode(memory)


def block_with_names(names: Any) -> np.ndarray:
    made = layout((Field("x", torch.float32, (3,)),), 4, (3,), ("env", "time"))
    entries = json.loads(made.header[8:])
    entries["__metadata__"]["dim_names"] = names
    text = json.dumps(entries).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + bytes(made.data_size), np.uint8)


# -- the server's own fields ------------------------------------------------------------------------------------------------------------------


def test_a_sampled_batch_can_be_put_back(make_buffer, kind):
    buffer = make_buffer(20)
    buffer.add_batch(rows(5))
    sampled = buffer.sample_all()
    buffer.add_batch(sampled)
    buffer.add_batch(sampled.to_dict())
    buffer.add(sampled[0])
    buffer.add(sampled[1].to_dict())
    assert numbers(buffer.sample_all()) == [*range(5), *range(5), *range(5), 0, 1]
    assert buffer.sample_all()["row_id"].tolist() == kind.row_ids(range(17))


def test_a_sampled_batch_can_be_given_to_a_writer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=20) as buffer:
        buffer.add_batch(rows(3))
        sampled = buffer.sample_all()
        with buffer.writer() as writer:
            writer.extend(sampled)
            for row in sampled:
                writer.append(row)
                writer.append(row.to_dict())
        assert numbers(buffer.sample_all()) == [0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]


def test_rows_that_are_batches_can_be_put_back(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(TensorDict({"x": torch.arange(12.0).view(2, 3, 2)}, [2, 3]))
    buffer.add_batch(buffer.sample_all())
    buffer.add(buffer.sample_all()[0])
    assert buffer.sample_all().batch_size == (5, 3)


@pytest.mark.parametrize("name", ["index", "row_id"])
@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int64)], ids=str)
def test_a_field_of_that_name_that_is_not_the_servers_is_refused(make_buffer, name, value):
    buffer = make_buffer(10)
    for batch in (TensorDict({"x": torch.zeros(2), name: value}, [2]), {"x": torch.zeros(2), name: value}):
        with pytest.raises(SchemaError, match=rf"'{name}' is reserved.*I64\[\].*left out"):
            buffer.add_batch(batch)
    assert buffer.state().schema is None


def test_a_block_with_the_servers_own_fields_is_stored_without_them(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer, grpc.insecure_channel(address) as channel:
        block = layout((Field("x", torch.float32, ()), *SENT_FIELDS), 2, ())
        memory = bytearray(block.size)
        places = block.write_header(np.frombuffer(memory, np.uint8))
        places["x"].view(np.float32)[:] = [1, 2]
        places["row_id"].view(np.int64)[:] = [70, 71]
        ReplayBufferServiceStub(channel).Add(AddRequest(table=table, block=bytes(memory)), timeout=10)
        assert buffer.state().schema.by_name.keys() == {"x", "index", "row_id"}
        assert buffer.sample_all()["x"].tolist() == [1, 2]
        assert buffer.sample_all()["row_id"].tolist() == [0, 1]
