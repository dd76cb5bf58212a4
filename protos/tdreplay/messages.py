"""Values of this package, to protobuf messages and back."""

from __future__ import annotations

from tdreplay.devices import parse_device
from tdreplay.errors import CodecError, InvalidArgumentError, SchemaError
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.schema import Schema, check_dim_names
from tdreplay.state import State
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["durability_from_message", "durability_to_message", "schema_from_message", "schema_to_message", "state_from_message"]

DURABILITIES = {
    "none": pb.DURABILITY_NONE,
    "process": pb.DURABILITY_PROCESS,
    "interval": pb.DURABILITY_INTERVAL,
    "power": pb.DURABILITY_POWER,
}


def durability_to_message(level: str) -> pb.Durability.ValueType:
    """The value of the proto that stands for a durability level."""
    return DURABILITIES[level]


def durability_from_message(value: int) -> str:
    """The durability level that a value stands for. It is 'none', which promises nothing, if this version does not know the value."""
    return next((level for level, known in DURABILITIES.items() if known == value), "none")


def schema_to_message(schema: Schema) -> pb.Schema:
    """The message that describes `schema`."""
    fields = [pb.FieldSpec(name=field.name, dtype=DTYPE_NAMES[field.dtype], shape=field.shape) for field in schema.fields]
    return pb.Schema(fields=fields, row_shape=schema.row_shape, dim_names=[name or "" for name in schema.dim_names])


def schema_from_message(message: pb.Schema) -> Schema:
    """The schema that `message` describes.

    Raises:
        CodecError: it describes no schema, or names a dtype that this version does not know.
    """
    unknown = sorted({field.dtype for field in message.fields} - DTYPES.keys())
    if unknown:
        raise CodecError(f"the table's schema names dtypes that this version does not know: {unknown}")
    fields = [Field(field.name, DTYPES[field.dtype], tuple(field.shape)) for field in message.fields]
    if any(size < 0 for shape in (message.row_shape, *(field.shape for field in fields)) for size in shape):
        raise CodecError("the table's schema has a dimension below 0")
    names = check_dim_names([name or None for name in message.dim_names], 1 + len(message.row_shape))
    try:
        return Schema.made_of(fields, tuple(message.row_shape), names)
    except SchemaError as error:
        raise CodecError(f"the table's schema is none: {error}") from None


def state_from_message(message: pb.DescribeResponse) -> State:
    """The state that `message` describes.

    Raises:
        CodecError: it describes no state.
    """
    schema = schema_from_message(message.schema) if message.HasField("schema") else None
    counts = (message.buffer_size, message.size, message.pointer, message.write_count)
    if min(counts) < 0 or message.size > message.buffer_size:
        raise CodecError(f"the table's buffer_size, size, pointer and write_count cannot be {list(counts)}")
    try:
        device = parse_device(message.storing_device, "the table's storing_device")
    except InvalidArgumentError as error:
        raise CodecError(str(error)) from None
    inserted = message.insert_count if message.HasField("insert_count") else message.write_count  # Older servers do not send it.
    return State(*counts, device, schema, durability_from_message(message.durability), inserted)
