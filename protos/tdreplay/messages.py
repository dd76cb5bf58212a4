"""Values of this package <-> their protobuf messages."""

from __future__ import annotations

from tdreplay.errors import CodecError
from tdreplay.schema import DTYPE_NAMES, DTYPES, Field, Schema
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["durability_from_message", "durability_to_message", "schema_from_message", "schema_to_message"]

DURABILITIES = {
    "none": pb.DURABILITY_NONE,
    "process": pb.DURABILITY_PROCESS,
    "interval": pb.DURABILITY_INTERVAL,
    "power": pb.DURABILITY_POWER,
}


def durability_to_message(level: str) -> pb.Durability.ValueType:
    """The value that stands for a level."""
    return DURABILITIES[level]


def durability_from_message(value: int) -> str:
    """The level that a value stands for; 'none' for one that this version does not know: it promises nothing."""
    return next((level for level, known in DURABILITIES.items() if known == value), "none")


def schema_to_message(schema: Schema) -> pb.Schema:
    """The message that describes `schema`."""
    fields = [pb.FieldSpec(name=field.name, dtype=DTYPE_NAMES[field.dtype], shape=field.shape) for field in schema.fields]
    return pb.Schema(fields=fields, row_shape=schema.row_shape, dim_names=[name or "" for name in schema.dim_names])


def schema_from_message(message: pb.Schema) -> Schema:
    """The schema that `message` describes.

    Raises:
        CodecError: it names a dtype that this version does not know.
    """
    unknown = sorted({field.dtype for field in message.fields} - DTYPES.keys())
    if unknown:
        raise CodecError(f"the table's schema names dtypes that this version does not know: {unknown}")
    fields = tuple(Field(field.name, DTYPES[field.dtype], tuple(field.shape)) for field in message.fields)
    return Schema(fields, tuple(message.row_shape), tuple(name or None for name in message.dim_names))
