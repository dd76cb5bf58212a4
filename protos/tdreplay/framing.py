"""Messages that carry a block, without a copy of it.

The protobuf runtime would copy a block twice on its way in and once on its way out. So this module frames the block itself: the other fields go
through the runtime, and the block's bytes stay where they are. On the wire it is the message that ``replay_buffer.proto`` describes, which any
protobuf library reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from tdreplay.block import ALIGNMENT, Bytes
from tdreplay.errors import CodecError, InvalidArgumentError, MessageTooLargeError
from tdreplay.limits import MAX_BATCH_SIZE, MAX_FIELD_NAMES, MAX_HEAD_BYTES, MAX_MESSAGE_BYTES, check_whole
from tdreplay.memory import new_bytes, writable

__all__ = ["frame", "split"]

M = TypeVar("M", bound=Message)

MAX_FIELDS = 256
"""The most fields of a message with a block. They are walked over in Python, and a message of 64 MiB has room for 33 million."""

PADDING_FIELD, BLOCK_FIELD = 14, 15
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5


def frame(head: Message, block_size: int) -> tuple[bytes, Bytes]:
    """A message with the fields of `head`, and room for a block of `block_size` bytes. The caller writes the block before it sends the message.

    Returns:
        The message, and a writable view of the block in it, aligned to `ALIGNMENT` bytes.

    Raises:
        MessageTooLargeError: the message is above `MAX_MESSAGE_BYTES`.
    """
    fields = head.SerializeToString()
    block_tag = bytes([BLOCK_FIELD << 3 | LENGTH_DELIMITED]) + _varint(block_size)
    # The data of a bytes object start at a multiple of 16. So what is aligned in the message is aligned in memory.
    padding = -(len(fields) + 2 + len(block_tag)) % ALIGNMENT
    prefix = fields + bytes([PADDING_FIELD << 3 | LENGTH_DELIMITED, padding]) + bytes(padding) + block_tag
    if len(prefix) + block_size > MAX_MESSAGE_BYTES:
        raise MessageTooLargeError(f"a message of {len(prefix) + block_size} bytes must be at most {MAX_MESSAGE_BYTES} bytes")
    message = new_bytes(len(prefix) + block_size)
    memory = writable(message)
    memory[: len(prefix)] = np.frombuffer(prefix, np.uint8)
    return message, memory[len(prefix) :]


def split(message: bytes, head_type: type[M]) -> tuple[M, Bytes]:
    """The fields of `message` without its block and padding, and the block: a view of the message's memory, empty if there is no block.

    The size is checked before the protobuf runtime parses anything: a parsed message may take thirty times the bytes of the message.

    Raises:
        CodecError: the bytes are not a message of that type.
        InvalidArgumentError: it has more than `MAX_HEAD_BYTES` beside its block or its packed index, or more slots than `MAX_BATCH_SIZE`.
    """
    try:
        if BLOCK_FIELD not in head_type.DESCRIPTOR.fields_by_number:
            if len(message) > MAX_HEAD_BYTES:
                _check_long(message, head_type)
            return head_type.FromString(message), np.empty(0, np.uint8)
        head, start, end = _parted(message, head_type)
        return head_type.FromString(head), writable(message)[start:end] if end > start else np.empty(0, np.uint8)
    except (DecodeError, IndexError) as error:
        raise CodecError(f"not a {head_type.DESCRIPTOR.name}: {error}") from None


def _parted(message: bytes, head_type: type[Message]) -> tuple[bytes, int, int]:
    """The bytes of all fields but block and padding, and where the block starts and ends. The last of several blocks counts, as in protobuf."""
    head, start, end = bytearray(), 0, 0
    for key, field_start, value_start, value_end in _walk(message, MAX_FIELDS):
        if key == BLOCK_FIELD << 3 | LENGTH_DELIMITED:
            start, end = value_start, value_end
        elif key >> 3 != PADDING_FIELD:
            size = len(head) + value_end - field_start
            if size > MAX_HEAD_BYTES and key >> 3 not in head_type.DESCRIPTOR.fields_by_number:
                continue  # This version does not know the field.
            _check_head(size, head_type)
            head += message[field_start:value_end]
    return bytes(head), start, end


def _check_long(message: bytes, head_type: type[Message]) -> None:
    """Checks a message without a block that is longer than `MAX_HEAD_BYTES`: only its packed index may make it so long."""
    index = head_type.DESCRIPTOR.fields_by_name.get("index")
    if index is None:
        _check_head(len(message), head_type)
        return
    data, slots, rest = np.frombuffer(message, np.uint8), 0, 0
    for key, field_start, value_start, value_end in _walk(message, MAX_FIELD_NAMES):
        if key == index.number << 3 | LENGTH_DELIMITED:
            slots += int(np.count_nonzero(data[value_start:value_end] < 0x80))  # A varint ends there.
        else:
            rest += value_end - field_start
    check_whole(slots, "the number of slots in index", 0, MAX_BATCH_SIZE)
    _check_head(rest, head_type)


def _check_head(size: int, head_type: type[Message]) -> None:
    if size > MAX_HEAD_BYTES:
        name = head_type.DESCRIPTOR.name
        raise InvalidArgumentError(f"{name} ({size} bytes, without a block or a packed index) must be at most {MAX_HEAD_BYTES} bytes")


def _walk(message: bytes, most: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message, at most `most` of them: its key, where it starts, and where its value starts and ends."""
    at = fields = 0
    while at < len(message):
        fields += 1
        if fields > most:
            raise DecodeError(f"more than {most} fields")
        field_start = at
        key, at = _read_varint(message, at)
        if key >> 32:
            raise DecodeError(f"the field number at byte {field_start} is too large")
        value_start, value_end = _value_span(message, at, key & 7)
        yield key, field_start, value_start, value_end
        at = value_end


def _value_span(message: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Where the value of a field starts and ends. The field's key ends at `at`."""
    if wire_type == VARINT:
        end = _read_varint(message, at)[1]
    elif wire_type == LENGTH_DELIMITED:
        length, at = _read_varint(message, at)
        end = at + length
    elif wire_type in (FIXED64, FIXED32):
        end = at + (8 if wire_type == FIXED64 else 4)
    else:
        raise DecodeError(f"wire type {wire_type} at byte {at} is unknown")
    if end > len(message):
        raise DecodeError(f"truncated: a field ends at byte {end} of {len(message)}")
    return at, end


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DecodeError(f"a varint at byte {at} is too long")
