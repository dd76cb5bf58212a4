"""What protobuf allows a client to send is read as protobuf says."""

from __future__ import annotations

import pytest

from compliance.server.stock_client import GOOD, TIMEOUT, Client, block, checked, one, transitions
from tdreplay.v1 import replay_buffer_pb2 as pb


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def text(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize("padding", [0, 1, 13, 300, 70_000])
def test_padding_of_any_length_is_ignored(client, padding):
    client.create(10)
    request = pb.AddRequest(table=client.table, padding=b"\xff" * padding, block=GOOD)
    assert client.stub.Add(request, timeout=TIMEOUT).rows == 2
    (answer,) = client.stub.AddBatch(iter([pb.AddBatchRequest(table=client.table, padding=b"\xff" * padding, block=GOOD)]), timeout=TIMEOUT)
    assert (answer.first_row_id, answer.rows) == (2, 2)
    assert checked(client.sample_all()) == [0, 1, 0, 1]


def test_fields_in_any_order_are_read(client):
    client.create(10)
    message = text(15, GOOD) + text(14, b"abc") + text(1, client.table.encode())
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 2
    assert checked(client.sample_all()) == [0, 1]


def test_of_a_field_that_comes_twice_the_last_one_counts(client):
    client.create(10)
    old = text(1, b"nowhere") + text(15, b"not a block") + text(14, bytes(20))
    message = old + text(15, block(transitions(3))) + text(1, client.table.encode())
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 3
    assert checked(client.sample_all()) == [0, 1, 2]


def test_unknown_fields_are_ignored(client):
    client.create(10)
    unknown = text(99, b"from the future") + varint(98 << 3) + varint(1 << 40) + varint(97 << 3 | 1) + bytes(8) + varint(96 << 3 | 5) + bytes(4)
    message = unknown + text(1, client.table.encode()) + unknown + text(15, GOOD) + unknown
    assert pb.AddResponse.FromString(client.call("Add")(message, timeout=TIMEOUT)).rows == 2
    describe = client.call("Describe")(text(1, client.table.encode()) + unknown, timeout=TIMEOUT)
    assert pb.DescribeResponse.FromString(describe).size == 2


def test_slots_may_be_packed_or_not(client):
    client.create(10)
    client.add(transitions(8))
    call = client.channel.unary_stream("/tdreplay.v1.ReplayBufferService/SampleByIndex", response_deserializer=pb.SampleByIndexResponse.FromString)
    message = bytes([2 << 3, 5]) + text(1, client.table.encode()) + text(2, bytes([3, 0])) + bytes([2 << 3, 7])
    assert checked(one(call(message, timeout=TIMEOUT))) == [5, 3, 0, 7]


def test_a_stream_may_name_another_table_from_message_to_message(client, address, name_table):
    other = Client(client.channel, client.stub, name_table(address))
    client.create(10)
    other.create(10)
    requests = [pb.AddBatchRequest(table=name, block=GOOD) for name in (client.table, other.table, "", client.table)]
    assert [answer.first_row_id for answer in client.stub.AddBatch(iter(requests), timeout=TIMEOUT)] == [0, 0, 2, 2]
    assert (client.describe().size, other.describe().size) == (4, 4)
