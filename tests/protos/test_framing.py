"""Messages that carry a block: framed without the protobuf runtime, and the same on the wire as what it makes."""

from __future__ import annotations

import sys
import time
from collections.abc import MutableMapping

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from tdreplay.block import ALIGNMENT, decode, layout
from tdreplay.errors import CodecError, InvalidArgumentError, MessageTooLargeError
from tdreplay.fields import DTYPES, Field
from tdreplay.framing import frame, split
from tdreplay.limits import MAX_MESSAGE_BYTES
from tdreplay.memory import new_bytes, writable
from tdreplay.v1 import replay_buffer_pb2 as pb

ALL_TYPES = [GetMessageClass(descriptor) for descriptor in pb.DESCRIPTOR.message_types_by_name.values()]
WITH_BLOCK = [message_type for message_type in ALL_TYPES if "block" in message_type.DESCRIPTOR.fields_by_name]
VARINT, FIXED64, LENGTH_DELIMITED, GROUP_START, GROUP_END, FIXED32 = range(6)

unhurried = settings(deadline=None)  # Time is asserted where it matters, as CPU time: the machine may be busy.
thorough = settings(deadline=None, max_examples=300)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
values = {
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_INT64: integers,
    FieldDescriptor.TYPE_SFIXED64: integers,
    FieldDescriptor.TYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.TYPE_SINT64: integers,
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),  # NaN does not equal itself.
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_ENUM: st.integers(-(1 << 31), (1 << 31) - 1),  # Also those that this version does not know.
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=70),
}


@st.composite
def messages(draw: st.DrawFn, types: list[type[Message]] = WITH_BLOCK) -> Message:
    """A message of any of these types with random values in its fields."""
    message = draw(st.sampled_from(types))()
    for descriptor in message.DESCRIPTOR.fields:
        place = getattr(message, descriptor.name)
        if isinstance(place, MutableMapping):
            place.update(draw(st.dictionaries(st.text(max_size=20), integers, max_size=3)))
        elif isinstance(place, Message):
            place.CopyFrom(draw(messages([type(place)])))
        elif not hasattr(place, "extend"):
            setattr(message, descriptor.name, draw(values[descriptor.type]))
        elif descriptor.message_type is None:
            place.extend(draw(st.lists(values[descriptor.type], max_size=3)))
    return message


def without_block(message: Message) -> Message:
    copy = type(message).FromString(message.SerializeToString())
    for name in {"block", "padding"} & set(message.DESCRIPTOR.fields_by_name):
        copy.ClearField(name)
    return copy


def framed(message: Message) -> bytes:
    """The message as tdreplay frames it."""
    data, memory = frame(without_block(message), len(message.block))
    memory[:] = np.frombuffer(message.block, np.uint8)
    return data


def address(memory: np.ndarray) -> int:
    return memory.__array_interface__["data"][0]


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def chunk(number: int, wire_type: int, value: bytes) -> bytes:
    """One field as protobuf writes it; a length-delimited value gets its length."""
    length = varint(len(value)) if wire_type == LENGTH_DELIMITED else b""
    return varint(number << 3 | wire_type) + length + value


# -- the same on the wire ---------------------------------------------------------------------------------------------------------------------


@unhurried
@given(messages())
def test_protobuf_reads_a_framed_message(message):
    read = type(message).FromString(framed(message))
    assert read.block == message.block
    assert not any(read.padding)
    assert len(read.padding) < ALIGNMENT
    assert without_block(read) == without_block(message)


@unhurried
@given(messages())
def test_a_message_of_protobuf_is_split_into_its_head_and_its_block(message):
    head, block = split(message.SerializeToString(), type(message))
    assert block.tobytes() == message.block
    assert head == without_block(message)


@unhurried
@given(messages())
def test_a_framed_message_is_split_again(message):
    head, block = split(framed(message), type(message))
    assert block.tobytes() == message.block
    assert head == without_block(message)


@unhurried
@given(messages(ALL_TYPES))
def test_a_message_without_a_block_is_all_head(message):
    plain = without_block(message)
    head, block = split(plain.SerializeToString(), type(message))
    assert (head, block.size) == (plain, 0)


chunks = st.one_of(
    st.builds(chunk, st.sampled_from([1, 2, 3, 16, 100, 1 << 20]), st.just(VARINT), st.integers(0, (1 << 64) - 1).map(varint)),
    st.builds(chunk, st.sampled_from([2, 3, 4, 5, 100]), st.just(FIXED64), st.binary(min_size=8, max_size=8)),
    st.builds(chunk, st.sampled_from([2, 3, 4, 5, 100]), st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.builds(chunk, st.sampled_from([1, 2, 16, 100]), st.just(LENGTH_DELIMITED), st.text(max_size=6).map(str.encode)),
    st.builds(chunk, st.just(14), st.just(LENGTH_DELIMITED), st.binary(max_size=200)),
    st.builds(chunk, st.just(15), st.just(LENGTH_DELIMITED), st.binary(max_size=200)),
)


@unhurried
@given(st.lists(chunks, max_size=12).map(b"".join), st.sampled_from(WITH_BLOCK))
def test_fields_in_any_order_unknown_or_sent_twice_mean_what_protobuf_says(data, message_type):
    read = message_type.FromString(data)
    head, block = split(data, message_type)
    assert block.tobytes() == read.block
    assert head == without_block(read)


@unhurried
@given(st.lists(chunks, min_size=1, max_size=4).map(b"".join), st.data())
def test_a_message_that_is_cut_off_is_refused_where_protobuf_refuses_it(data, draw):
    cut = data[: draw.draw(st.integers(0, len(data)))]
    try:
        read = pb.AddRequest.FromString(cut)
    except DecodeError:
        with pytest.raises(CodecError, match="not a AddRequest"):
            split(cut, pb.AddRequest)
    else:
        head, block = split(cut, pb.AddRequest)
        assert (head, block.tobytes()) == (without_block(read), read.block)


@pytest.mark.parametrize("wire_type", [VARINT, FIXED32, FIXED64])
def test_a_block_of_another_wire_type_is_an_unknown_field(wire_type):
    data = chunk(15, wire_type, {VARINT: b"\x05", FIXED32: b"abcd", FIXED64: b"abcdefgh"}[wire_type])
    assert pb.AddRequest.FromString(data).block == b""
    assert split(data, pb.AddRequest)[1].size == 0


@pytest.mark.parametrize("wire_type", [GROUP_START, GROUP_END, 6, 7])
def test_groups_and_unknown_wire_types_are_refused(wire_type):
    with pytest.raises(CodecError, match=f"wire type {wire_type} at byte 2 is unknown"):
        split(chunk(100, wire_type, b"") + chunk(100, GROUP_END, b""), pb.AddRequest)


# -- places in memory -------------------------------------------------------------------------------------------------------------------------


@unhurried
@given(messages(), st.integers(0, 1 << 16))
def test_the_block_of_a_framed_message_is_aligned_where_it_is_written_and_where_it_is_read(message, size):
    data, memory = frame(without_block(message), size)
    assert (memory.size, memory.flags.writeable) == (size, True)
    assert not size or address(memory) % ALIGNMENT == 0
    received = split(data, type(message))[1]
    assert received.size == size
    assert not size or address(received) % ALIGNMENT == 0


def test_what_is_written_into_a_framed_block_is_in_the_message_without_a_copy():
    place = layout(tuple(Field(name, dtype, (3,)) for name, dtype in DTYPES.items()), 5, ())
    data, memory = frame(pb.AddRequest(table="t"), place.size)
    place.write_header(memory)
    views = place.views(memory)
    for number, view in enumerate(views.values()):
        assert view.data_ptr() % view.dtype.itemsize == 0
        view.copy_(view.new_full(view.shape, number % 2))
    assert address(split(data, pb.AddRequest)[1]) == address(memory)
    columns = decode(split(data, pb.AddRequest)[1]).columns
    for number, (name, view) in enumerate(views.items()):
        assert columns[name].data_ptr() == view.data_ptr()
        assert (columns[name] == columns[name].new_full((5, 3), number % 2)).all()


@pytest.mark.parametrize("size", [2, 100, 1 << 20])
def test_a_writable_view_keeps_the_bytes_alive(size):
    data = new_bytes(size)
    references = sys.getrefcount(data)
    view = writable(data)
    tail = view[1:]
    assert sys.getrefcount(data) == references + 1
    del view
    assert sys.getrefcount(data) == references + 1
    tail[:] = 7
    assert data[1:] == b"\x07" * (size - 1)
    del tail
    assert sys.getrefcount(data) == references


def test_the_tensors_of_a_received_message_keep_its_bytes_alive():
    place = layout((Field("a", DTYPES["I64"], ()),), 1000, ())
    data, memory = frame(pb.AddRequest(), place.size)
    place.write_header(memory)["a"].view("<i8")[:] = 5
    del memory
    references = sys.getrefcount(data)
    columns = decode(split(data, pb.AddRequest)[1]).columns
    assert sys.getrefcount(data) == references + 1
    tail = columns.pop("a")[1:]
    assert sys.getrefcount(data) == references + 1
    del data
    others = [new_bytes(place.size) for _ in range(100)]
    for other in others:
        writable(other)[:] = 255
    assert tail.tolist() == [5] * 999


# -- limits and hostile bytes -----------------------------------------------------------------------------------------------------------------


def test_a_message_may_be_as_large_as_the_limit_and_not_larger():
    prefix = len(frame(pb.AddRequest(), 1 << 20)[0]) - (1 << 20)
    assert len(frame(pb.AddRequest(), MAX_MESSAGE_BYTES - prefix)[0]) == MAX_MESSAGE_BYTES
    with pytest.raises(MessageTooLargeError, match=f"{MAX_MESSAGE_BYTES + 1} bytes must be at most {MAX_MESSAGE_BYTES}"):
        frame(pb.AddRequest(), MAX_MESSAGE_BYTES - prefix + 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\x7a",
        b"\x7a\x05abcd",
        b"\x7a" + b"\xff" * 9 + b"\x01",
        b"\x7a" + b"\xff" * 20,
        b"\xff" * 100,
        b"\x80" * 100,
        b"\x10" + b"\xff" * 11,
        b"\x00\x00",
        b"\x0a\x02\xff\xfe",
        b"\x7d\x00",
        b"\x79\x00",
        b"\x72\x01",
        b"safetensors",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(CodecError, match="not a AddRequest"):
        split(data, pb.AddRequest)


def check_that_it_splits_or_is_refused(data: bytes, message_type: type[Message]) -> None:
    try:
        head, block = split(data, message_type)
    except InvalidArgumentError:
        return
    assert isinstance(head, message_type)
    assert not block.size or block.tobytes() in data


@thorough
@given(messages(), st.data())
def test_a_message_with_changed_bytes_splits_or_is_refused(message, draw):
    data = bytearray(framed(message))
    for _ in range(draw.draw(st.integers(1, 4))):
        start = draw.draw(st.integers(0, len(data)))
        data[start : start + draw.draw(st.integers(0, 4))] = draw.draw(st.binary(max_size=4))
    check_that_it_splits_or_is_refused(bytes(data), type(message))


@thorough
@given(st.binary(max_size=64), st.sampled_from(WITH_BLOCK))
def test_any_bytes_split_or_are_refused(data, message_type):
    check_that_it_splits_or_is_refused(data, message_type)


@pytest.mark.parametrize("data", [b"\x7a\x80\x80\x40" + bytes(1 << 20), b"\xa2\x06\x80\x80\x40" + bytes(1 << 20)], ids=["block", "unknown field"])
def test_a_long_field_is_skipped_at_once(data):
    started = time.thread_time()
    split(data, pb.AddRequest)
    assert time.thread_time() - started < 0.1


@pytest.mark.parametrize("field", [b"\x72\x00", b"\xa2\x06\x00"], ids=["padding", "unknown field"])
def test_a_message_of_a_million_empty_fields_is_split_or_refused_at_once(field):
    data = field * (1 << 20)
    started = time.thread_time()
    check_that_it_splits_or_is_refused(data, pb.AddRequest)
    assert time.thread_time() - started < 0.1
