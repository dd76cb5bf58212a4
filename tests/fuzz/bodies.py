"""Random requests: blocks that were changed here and there, and messages whose fields, or bytes, are anything."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from safetensors.numpy import save

from tdreplay.v1 import replay_buffer_pb2 as pb

TABLES = ("f0", "f1", "f2", "f3")
"""The tables of the tests; the last one has trajectories."""
SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]
NUMBERS = (0, 1, 2, 3, 7, 64, 255, 256, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 48, 1 << 62, (1 << 63) - 1, -1, -2, -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
WORDS = ("", "default", *TABLES, "x", "obs", "index", "row_id", "next", "next.obs", "uniform", "fifo", "a" * 65, "é", "\x00", "../x", "a.b.c")
KINDS = FieldDescriptor
WHOLE = {KINDS.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1), KINDS.CPPTYPE_UINT32: (0, (1 << 32) - 1)}
WHOLE |= {KINDS.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1), KINDS.CPPTYPE_UINT64: (0, (1 << 64) - 1)}
SHAPES = ("[3]", "[]", "[0]", "[-1]", "[1e400]", "[[3]]", "null", "x", '["a"]', "9" * 5000, "[" * 5000, 3)
DTYPES = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64", "C64", "F8_E4M3", "F4", "")


def blocks() -> list[bytes]:
    """Blocks that are right: plain rows, rows that are segments, and steps of an episode."""
    steps = np.arange(4)
    episode = {"obs": steps.astype(np.float32)[:, None], "reward": np.ones(4, np.float32), "terminated": steps == 9, "truncated": steps == 9}
    episode |= {"episode_id": np.full(4, 5), "step": steps, "step_kind": np.zeros(4, np.uint8)}
    plain = {"obs": np.zeros((3, 2), np.float32), "done": np.zeros(3, bool), "next.obs": np.ones((3, 2), np.float64)}
    shaped = {"x": np.zeros((2, 5, 3), np.int16)}
    return [save(plain, {"batch_shape": "[3]"}), save(shaped, {"batch_shape": "[2, 5]"}), save(episode, {"batch_shape": "[4]"})]


def changed_block(chance: random.Random, right: list[bytes]) -> bytes:
    """A block with one to four changes: of its bytes, or of what its header says."""
    block = chance.choice(right)
    for _ in range(chance.randint(1, 4)):
        block = chance.choice((_changed_bytes, _changed_header))(chance, block)
    return block


def _changed_bytes(chance: random.Random, data: bytes) -> bytes:
    at, length = chance.randint(0, len(data)), chance.choice((1, 1, 2, 8, 64))
    how = chance.randrange(5)
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + chance.randbytes(length) + data[at:]
    if how == 2:
        return data[:at] + data[at + length :]
    if how == 3:
        return data[:at] + chance.randbytes(length) + data[at + length :]
    return data[:at] + data[max(0, at - length) : at] + data[at:]


def _changed_header(chance: random.Random, block: bytes) -> bytes:
    """The block with another header, whose length is right."""
    try:
        (length,) = struct.unpack("<Q", block[:8])
        entries = json.loads(block[8 : 8 + length])
        _change(chance, entries)
        header = json.dumps(entries).encode()
    except (ValueError, struct.error, TypeError, AttributeError, IndexError):
        return _changed_bytes(chance, block)
    return struct.pack("<Q", len(header)) + header + block[8 + length :]


def _change(chance: random.Random, entries: dict[str, Any]) -> None:
    name = chance.choice(sorted(entries))
    if name == "__metadata__":
        entries[name][chance.choice(("batch_shape", "dim_names"))] = chance.choice(
            ("[3]", "[]", "[0]", "[-1]", "[1e400]", "[[3]]", "null", "x", '["a"]', 3)
        )
    elif chance.random() < 0.3:
        entries[chance.choice(WORDS)] = entries.pop(name)
    else:
        key = chance.choice(("dtype", "shape", "data_offsets"))
        entries[name][key] = chance.choice(DTYPES) if key == "dtype" else [chance.choice(NUMBERS) for _ in range(chance.randint(0, 4))]


def add_request(chance: random.Random, block: bytes) -> bytes:
    """An AddRequest with a block."""
    table = chance.choice(TABLES)
    numbered = {"writer_id": chance.choice(("a", "b")), "sequence": chance.randint(1, 100)} if chance.random() < 0.5 else {}
    return bytes(pb.AddRequest(table=table, block=block, has_priorities=chance.random() < 0.1, **numbered).SerializeToString())


def request(chance: random.Random, descriptor: Descriptor) -> bytes:
    """A request: random fields, bytes of such a one changed, or bytes that are anything."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.choice((0, 1, 5, 50, 500)))
    body: bytes = _filled(chance, descriptor, 0).SerializeToString()
    return body if chance.random() < 0.6 else _changed_bytes(chance, body)


def _filled(chance: random.Random, descriptor: Descriptor, depth: int) -> Any:
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if chance.random() < (0.9 if field.name == "table" else 0.3):
            _fill(chance, message, field, depth)
    return message


def _fill(chance: random.Random, message: Any, field: FieldDescriptor, depth: int) -> None:
    repeated = isinstance(getattr(message, field.name), (list, tuple)) or hasattr(getattr(message, field.name), "extend")
    if field.message_type is not None:
        if depth < 4 and not field.message_type.GetOptions().map_entry:
            found = _filled(chance, field.message_type, depth + 1)
            (getattr(message, field.name).add() if repeated else getattr(message, field.name)).CopyFrom(found)
    elif repeated:
        getattr(message, field.name).extend(_value(chance, field) for _ in range(chance.randint(0, 4)))
    else:
        setattr(message, field.name, _value(chance, field))


def _value(chance: random.Random, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in WHOLE:
        low, high = WHOLE[kind]
        return min(high, max(low, chance.choice(NUMBERS)))
    if kind == KINDS.CPPTYPE_ENUM:
        return chance.choice((*field.enum_type.values_by_number, 99))
    if kind == KINDS.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind in (KINDS.CPPTYPE_FLOAT, KINDS.CPPTYPE_DOUBLE):
        return chance.choice(FLOATS)
    return _text(chance, field)


def _text(chance: random.Random, field: FieldDescriptor) -> Any:
    if field.type == KINDS.TYPE_BYTES:
        return chance.choice((b"", chance.randbytes(20), *RIGHT))
    return chance.choice(TABLES if field.name == "table" and chance.random() < 0.8 else WORDS)


RIGHT = blocks()
