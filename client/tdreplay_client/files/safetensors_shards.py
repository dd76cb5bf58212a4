"""Shards of safetensors. A shard that is written is a block, as it travels on the wire."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import torch

from tdreplay.block import Span, layout, listed_spans
from tdreplay.errors import CodecError
from tdreplay.fields import Field
from tdreplay.limits import MAX_HEADER_BYTES
from tdreplay.memory import rows_of
from tdreplay.schema import Columns
from tdreplay_client.files.shards import FileFormat, ShardLayout, ShardReader, check_bools

__all__ = ["SAFETENSORS"]


def _write(file: BinaryIO, shard: ShardLayout, parts: Sequence[Columns]) -> None:
    found = layout(shard.fields, sum(len(part[shard.fields[0].name]) for part in parts), shard.row_shape, shard.dim_names)
    file.write(found.header)
    for span in found.spans:
        for part in parts if span.size else ():
            file.write(rows_of(part[span.name]).tobytes())


class _Safetensors(ShardReader):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, name)
        size = os.fstat(file.fileno()).st_size
        try:
            self._offset, self._spans = self._head(size)
        except CodecError as error:
            raise self.broken(str(error).removeprefix("not a block: ")) from None
        self._check(size)
        self.fields = tuple(Field(span.name, span.dtype, span.shape[1:]) for span in self._spans)
        self.rows = self._spans[0].shape[0]

    def _head(self, size: int) -> tuple[int, tuple[Span, ...]]:
        prefix = self._file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
            raise self.broken(f"it is no safetensors file: its header ({length} bytes) must be at most {MAX_HEADER_BYTES} bytes, of {size} in all")
        return 8 + length, listed_spans(prefix + self._file.read(length))

    def _check(self, size: int) -> None:
        if not self._spans:
            raise self.broken("it has no fields")
        end = self._offset + sum(span.size for span in self._spans)
        if end != size:
            raise self.broken(f"its header speaks of {end} bytes, and it has {size}: it is not whole")
        for span in self._spans:
            if not span.shape or span.shape[0] != self._spans[0].shape[0]:
                wanted, other = list(self._spans[0].shape[:1]), self._spans[0].name
                raise self.broken(f"field {span.name!r} has shape {list(span.shape)}: its first dimension must be the rows, {wanted} as of {other!r}")

    def parts(self, start: int, rows: int) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(start, self.rows, rows):
            count = min(rows, self.rows - first)
            yield {span.name: self._read(span, first, count) for span in self._spans}

    def _read(self, span: Span, first: int, count: int) -> torch.Tensor:
        row = span.size // span.shape[0] if span.shape[0] else 0
        shape = (count, *span.shape[1:])
        if not row:
            return torch.empty(shape, dtype=span.dtype, device="cpu")
        memory = bytearray(count * row)
        self._file.seek(self._offset + span.start + first * row)
        if self._file.readinto(memory) != len(memory):  # type: ignore[attr-defined]  # A buffered file has it.
            raise self.broken(f"it ends in the middle of field {span.name!r}")
        raw = torch.frombuffer(memory, dtype=torch.uint8)
        return (check_bools(self, span.name, raw) if span.dtype is torch.bool else raw.view(span.dtype)).view(shape)


SAFETENSORS = FileFormat("safetensors", _write, _Safetensors)
"""safetensors: every dtype that a table may have."""
