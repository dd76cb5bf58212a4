"""A block: rows encoded as one safetensors buffer, on the wire or in shared memory.

Layout (safetensors, the format of version 0.3 and later):

- the header's length as u64, little-endian;
- the header: JSON, padded with spaces;
- the tensors' bytes, one after the other without a gap.

Each tensor is a field of shape ``[n, *field shape]``, and ``__metadata__`` holds ``{"batch_shape": "[n, ...]"}``. Fields are ordered by falling item
size, then by name, and the header is padded to a multiple of 16 bytes. So every field is aligned if the block is.

Encoding gives a layout and lets the caller write each field in its place. Decoding checks the header and gives views. Neither copies a row.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import CodecError, SchemaError
from tdreplay.fields import DTYPE_NAMES, DTYPES, Field
from tdreplay.limits import MAX_BATCH_SIZE, MAX_HEADER_BYTES, MAX_MESSAGE_BYTES, MAX_RANK
from tdreplay.memory import Rows
from tdreplay.schema import METADATA, DimNames, Schema, check_dim_names
from tdreplay.system_fields import DRAWN_NAMES, SYSTEM_FIELDS, SYSTEM_NAMES

__all__ = ["ALIGNMENT", "Block", "Layout", "Span", "check_header", "checked_places", "decode", "layout", "layout_of", "listed_spans"]

ALIGNMENT = 16
BATCH_SHAPE = "batch_shape"
DIM_NAMES = "dim_names"
ONE_A_ROW = SYSTEM_NAMES | DRAWN_NAMES
"""Fields that may have one value a row where the rows are themselves batches."""
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Span:
    """The place of one tensor in a block, in bytes: `start` counts from the start of the block's data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """The header of a block and the places of its tensors.

    Attributes:
        header: first bytes of the block: the length prefix, the JSON and its padding.
        batch_shape: number of rows, then the row shape.
        spans: places of the tensors, in the order in which they lie.
        data_size: bytes of all tensors together.
        dim_names: names of the dimensions of `batch_shape`; () if none has one.
    """

    header: bytes
    batch_shape: tuple[int, ...]
    spans: tuple[Span, ...]
    data_size: int
    dim_names: DimNames = ()

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return len(self.header) + self.data_size

    @cached_property
    def stored(self) -> tuple[Span, ...]:
        """The spans of the fields that are stored when the block is inserted: all but the system fields, if they are as a server sends them."""
        system = {(field.name, field.dtype, (*self.batch_shape[:1], *field.shape)) for field in SYSTEM_FIELDS}
        return tuple(span for span in self.spans if (span.name, span.dtype, span.shape) not in system)

    @cached_property
    def schema(self) -> Schema:
        """The schema of the rows as they are stored. It is made once for each header that is in use.

        Raises:
            SchemaError, CodecError: as `Schema.of`.
        """
        fields = (Field(span.name, span.dtype, span.shape[1:]) for span in self.stored)
        return Schema.made_of(fields, self.batch_shape[1:], self.dim_names)

    def check_fields(self) -> None:
        """Checks that the fields of a batch from a server can be those of a TensorDict.

        Raises:
            CodecError: they cannot.
        """
        if self._wrong_fields:
            raise CodecError(f"not a batch: {self._wrong_fields}")

    @cached_property
    def _wrong_fields(self) -> str:
        try:
            return "" if self.spans and (not self.stored or self.schema) else "it has no fields"
        except (CodecError, SchemaError) as error:
            return str(error)

    def write_header(self, memory: Bytes) -> dict[str, Rows]:
        """Writes the header into `memory` (of `size` bytes), and returns `places` of it, which the caller is to fill."""
        memory[: len(self.header)] = np.frombuffer(self.header, np.uint8)
        return self.places(memory)

    def places(self, memory: Bytes) -> dict[str, Rows]:
        """The fields of the block that `memory` holds, as views of it: name -> rows of bytes. A field without bytes has no place."""
        return self._places(memory, self.spans)

    def stored_places(self, memory: Bytes) -> dict[str, Rows]:
        """As `places`, but only of the fields that are stored."""
        return self._places(memory, self.stored)

    def _places(self, memory: Bytes, spans: tuple[Span, ...]) -> dict[str, Rows]:
        offset, rows = len(self.header), self.batch_shape[0]
        return {span.name: np.ndarray(rows, np.dtype((np.void, span.size // rows)), memory, offset + span.start) for span in spans if span.size}

    def views(self, memory: Bytes) -> dict[str, torch.Tensor]:
        """The fields of the block that `memory` holds, as views of it: name -> tensor of shape [n, ...]."""
        offset = len(self.header)
        aligned = (memory.__array_interface__["data"][0] + offset) % ALIGNMENT == 0
        return {span.name: _view(memory, span, offset, aligned) for span in self.spans}


@dataclass(frozen=True)
class Block:
    """A decoded block.

    Attributes:
        header: the layout that the block's header describes.
        memory: bytes that begin with the block; they may go on after it.
    """

    header: Layout
    memory: Bytes

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """(n, *row shape)."""
        return self.header.batch_shape

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.header.batch_shape[0]

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """Every field, in the block's order: name -> tensor of shape [n, ...], a view of the block's memory."""
        return self.header.views(self.memory)

    @property
    def places(self) -> dict[str, Rows]:
        """The fields that are stored: name -> rows of bytes, a view of the block's memory. A field without bytes has no place."""
        return self.header.stored_places(self.memory)


def check_header(schema: Schema) -> None:
    """Checks that rows of `schema` can be sent: the header of the largest block that a server makes of them must fit.

    Raises:
        CodecError: this header is above `MAX_HEADER_BYTES`.
    """
    fields = (*schema.fields, *SYSTEM_FIELDS)
    rows = min(MAX_BATCH_SIZE, max(1, MAX_MESSAGE_BYTES // sum(field.row_bytes for field in fields)))
    try:
        layout(fields, rows, schema.row_shape, schema.dim_names)
    except CodecError as error:
        added = " and ".join(field.name for field in fields[len(schema.fields) :])
        raise CodecError(f"the {len(schema.fields)} fields of a row are too many: with {added}, as they are sent, {error}") from None


def checked_places(block: Block, *, changing: bool) -> dict[str, Rows]:
    """`Block.places`, with a check that every bool is 0 or 1: torch relies on it, and received bytes may be anything.

    Args:
        block: the received block.
        changing: whether others may write the block's memory meanwhile. Then its bools are copied, and the copies are checked.

    Raises:
        CodecError: a bool is another byte; the message names its field.
    """
    places = block.places
    for span in block.header.spans:
        if span.dtype is torch.bool and span.size:
            places[span.name] = rows = places[span.name].copy() if changing else places[span.name]
            largest = int(rows.view(np.uint8).max())
            if largest > 1:
                raise CodecError(f"field {span.name!r}: a BOOL must be 0 or 1, and one is {largest}")
    return places


@lru_cache(maxsize=512)
def layout(fields: tuple[Field, ...], rows: int, row_shape: tuple[int, ...], dim_names: DimNames = ()) -> Layout:
    """The layout of a block of `rows` rows with these fields. It is made once for each combination that is in use.

    Raises:
        CodecError: the header is above `MAX_HEADER_BYTES`.
    """
    spans, start = [], 0
    for field in sorted(fields, key=lambda f: (-f.dtype.itemsize, f.name)):
        spans.append(Span(field.name, field.dtype, (rows, *field.shape), start, rows * field.row_bytes))
        start += rows * field.row_bytes
    batch_shape = (rows, *row_shape)
    return Layout(_header(spans, batch_shape, dim_names), batch_shape, tuple(spans), start, dim_names)


def _header(spans: list[Span], batch_shape: tuple[int, ...], dim_names: DimNames) -> bytes:
    names = {DIM_NAMES: json.dumps(dim_names, ensure_ascii=False)} if dim_names else {}
    entries: dict[str, Any] = {METADATA: {BATCH_SHAPE: json.dumps(batch_shape), **names}}
    for span in spans:
        entries[span.name] = {"dtype": DTYPE_NAMES[span.dtype], "shape": span.shape, "data_offsets": (span.start, span.start + span.size)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CodecError(f"the header of a block with {len(spans)} fields ({len(text)} bytes) must be at most {MAX_HEADER_BYTES} bytes")
    return struct.pack("<Q", len(text)) + text


def _view(memory: Bytes, span: Span, offset: int, aligned: bool) -> torch.Tensor:
    if span.size == 0:
        return torch.empty(span.shape, dtype=span.dtype, device="cpu")
    if not aligned or span.start % span.dtype.itemsize:
        # Copy: another encoder may leave a field unaligned, and not every processor reads that.
        memory, offset = memory[offset + span.start : offset + span.start + span.size].copy(), -span.start
    return torch.frombuffer(memory, dtype=span.dtype, count=span.size // span.dtype.itemsize, offset=offset + span.start).view(span.shape)


def decode(memory: Bytes, *, longer: bool = False) -> Block:
    """The block that `memory` holds. The header is checked; nothing about its sender is taken for granted.

    Args:
        memory: bytes that begin with the block.
        longer: whether the memory may go on after the block.

    Raises:
        CodecError: it is not a block; the message says the first rule that it breaks.
    """
    if len(memory) < 8:
        raise CodecError(f"not a block: {len(memory)} bytes, and the header's length alone takes 8")
    (length,) = struct.unpack("<Q", memory[:8].tobytes())
    if length > MAX_HEADER_BYTES:
        raise CodecError(f"not a block: the header ({length} bytes) must be at most {MAX_HEADER_BYTES} bytes")
    if length > len(memory) - 8:
        raise CodecError(f"not a block: truncated, the header ({length} bytes) does not fit into {len(memory) - 8} bytes")
    parsed = _parse(memory[: 8 + length].tobytes())
    if parsed.size > len(memory) or (parsed.size < len(memory) and not longer):
        raise CodecError(f"not a block: the header speaks of {parsed.data_size} bytes of data, {len(memory) - len(parsed.header)} are there")
    return Block(parsed, memory)


def layout_of(header: bytes) -> Layout:
    """The layout that a header describes which comes alone: its length prefix is part of it.

    Raises:
        CodecError: it is none, or its fields cannot be those of a batch.
    """
    if len(header) < 8 or struct.unpack("<Q", header[:8])[0] != len(header) - 8 or len(header) > MAX_HEADER_BYTES + 8:
        raise CodecError(f"not the header of a block: {len(header)} bytes that do not begin with their number")
    found = _parse(header)
    found.check_fields()
    return found


@lru_cache(maxsize=128)
def _parse(header: bytes) -> Layout:
    """The layout that a header describes. A stream's headers are all alike, so each is parsed once."""
    entries = _entries(header)
    metadata = entries.pop(METADATA, None)
    batch_shape = _batch_shape(metadata)
    dim_names = _dim_names(metadata.get(DIM_NAMES, "[]"), len(batch_shape))
    spans, end = _spans(entries)
    for span in spans:
        expected = batch_shape[:1] if span.name in ONE_A_ROW else batch_shape
        if span.shape[: len(expected)] != expected:
            raise CodecError(f"not a block: field {span.name!r} of shape {list(span.shape)} must start with the batch shape {list(expected)}")
    return Layout(header, batch_shape, spans, end, dim_names)


def listed_spans(header: bytes) -> tuple[Span, ...]:
    """The places of the tensors that the header of any safetensors buffer lists, its length prefix included, in the order in which they lie.

    Raises:
        CodecError: it is none; the message says the first rule that it breaks.
    """
    entries = _entries(header)
    entries.pop(METADATA, None)
    return _spans(entries)[0]


def _entries(header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header[8:].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not a block: the header is not JSON: {str(error)[:100]}") from None
    if not isinstance(entries, dict):
        raise CodecError("not a block: the header must be a JSON object")
    return entries


def _spans(entries: dict[str, Any]) -> tuple[tuple[Span, ...], int]:
    """The places of the tensors, and where the last one ends."""
    spans = sorted((_span(name, entry) for name, entry in entries.items()), key=lambda span: (span.start, span.size))
    end = 0
    for span in spans:
        if span.start != end:
            raise CodecError(f"not a block: field {span.name!r} starts at byte {span.start}, it must start at {end}, where the one before ends")
        end += span.size
    return tuple(spans), end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key comes twice")
    return entries


def _batch_shape(metadata: Any) -> tuple[int, ...]:
    text = metadata.get(BATCH_SHAPE) if isinstance(metadata, dict) else None
    try:
        shape = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        shape = None
    if not _is_shape(shape) or not shape:
        raise CodecError(f"not a block: {METADATA}.{BATCH_SHAPE} ({str(text)[:100]!r}) must be a JSON list of at least one whole number")
    return tuple(shape)


def _dim_names(text: Any, dimensions: int) -> DimNames:
    try:
        return check_dim_names(json.loads(text), dimensions)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(f"not a block: {METADATA}.{DIM_NAMES}: {str(error)[:200]}") from None


def _span(name: str, entry: Any) -> Span:
    try:
        dtype_name, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CodecError(f"not a block: field {name!r} must have dtype, shape and data_offsets") from None
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise CodecError(f"field {name!r}: dtype {str(dtype_name)[:40]!r} cannot be stored; it must be one of {sorted(DTYPES)}")
    if not _is_shape(shape):
        raise CodecError(f"not a block: field {name!r}: shape ({str(shape)[:100]}) must be a list of at most {MAX_RANK} whole numbers")
    dtype = DTYPES[dtype_name]
    size = dtype.itemsize * math.prod(shape)
    if not (_is_whole(start) and _is_whole(end)) or end - start != size:
        raise CodecError(f"not a block: field {name!r}: data_offsets {str([start, end])[:100]} must span the {size} bytes of {dtype_name}{shape}")
    return Span(name, dtype, tuple(shape), start, size)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _is_shape(value: Any) -> bool:
    # The product without zeros: torch computes the strides of an empty tensor too, and they must not overflow.
    return isinstance(value, list) and len(value) <= MAX_RANK and all(map(_is_whole, value)) and _is_whole(math.prod(n or 1 for n in value))
