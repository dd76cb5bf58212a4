"""Text that comes from the network stays text: in the log, and in the status of a call."""

from __future__ import annotations

import json
import logging
import shlex
import struct
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from safetensors.numpy import save

from compliance.kinds import ADDRESS
from tdreplay.errors import TRAILER
from tdreplay.v1 import replay_buffer_pb2 as pb

FORGED = 'x\ntimestamp=2000-01-01T00:00:00Z level=critical event="the disk failed"\r\x1b[2K\x1b[31m\u202e\u2028 details=forged" call=None'


def block(name: str, dtype: str = "U8", shape: object = (1,)) -> bytes:
    header = json.dumps({"__metadata__": {"batch_shape": "[1]"}, name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 1]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0"


def refused(act: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        act()
    return raised.value


@pytest.fixture(params=["table", "fields", "field", "dtype", "shape", "storing_device", "writer_id"])
def send(request, stub, table) -> Callable[[str], grpc.RpcError]:
    """Puts a text where the server refuses it."""
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=2), timeout=10)
    stub.Add(pb.AddRequest(table=table, block=block("x")), timeout=10)
    calls: dict[str, Callable[[str], object]] = {
        "table": lambda text: stub.CreateTable(pb.CreateTableRequest(table=text, buffer_size=1), timeout=10),
        "fields": lambda text: next(stub.SampleAll(pb.SampleAllRequest(table=table, fields=[text]), timeout=10)),
        "field": lambda text: stub.Add(pb.AddRequest(table=table, block=block(text)), timeout=10),
        "dtype": lambda text: stub.Add(pb.AddRequest(table=table, block=block("x", text)), timeout=10),
        "shape": lambda text: stub.Add(pb.AddRequest(table=table, block=block("x", shape=text)), timeout=10),
        "storing_device": lambda text: stub.CreateTable(pb.CreateTableRequest(table="new", buffer_size=1, storing_device=text), timeout=10),
        "writer_id": lambda text: stub.Add(pb.AddRequest(table=table, block=block("x"), writer_id=text, sequence=1), timeout=10),
    }
    return lambda text: refused(lambda: calls[request.param](text))


@pytest.mark.skipif(ADDRESS is not None, reason="the log of a server in another process is not seen here")
def test_a_text_forges_no_line_of_the_log(send, caplog):
    caplog.set_level(logging.INFO, "tdreplay")
    caplog.clear()
    send(FORGED)
    (record,) = [record for record in caplog.records if "call refused" in record.getMessage()]
    line = record.getMessage()
    assert line.isprintable()
    assert record.exc_info is None
    entries = dict(entry.split("=", 1) for entry in shlex.split(line))
    assert set(entries) == {"timestamp", "level", "event", "call", "request_id", "peer", "caller", "error", "details"}
    assert (entries["level"], entries["event"]) == ("info", "call refused")


@pytest.mark.parametrize(
    "text", ["\U0001f600" * 200, "%" * 2000, "ä" * 2000, "\x1b" * 500, FORGED], ids=["emoji", "percent", "umlaut", "escape", "forged"]
)
def test_a_text_leaves_the_status_whole(send, text):
    error = send(text)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())[TRAILER].endswith("Error")
    assert error.details()
    assert error.details().isprintable()


@pytest.mark.parametrize("character", ["\U0001f600", "ä", "%"])
def test_the_names_of_a_tables_fields_leave_the_status_whole(stub, table, character):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=2), timeout=10)
    rows = {f"{n}{character * 250}": np.zeros(1, np.uint8) for n in range(4)}
    stub.Add(pb.AddRequest(table=table, block=save(rows, {"batch_shape": "[1]"})), timeout=10)
    error = refused(lambda: next(stub.SampleAll(pb.SampleAllRequest(table=table, fields=["nowhere"]), timeout=10)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())[TRAILER] == "FieldNotFoundError"
    assert "'nowhere' is not a field of the table" in error.details()
