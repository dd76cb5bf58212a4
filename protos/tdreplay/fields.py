"""A field: one named value of every row. And the dtypes that it may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = ["DTYPES", "DTYPE_NAMES", "Field"]

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""The dtypes that can be stored, by the names that safetensors gives them."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""The name of each dtype that can be stored."""


@dataclass(frozen=True)
class Field:
    """One field of a row.

    Attributes:
        name: nested keys joined with '.'.
        dtype: one of `DTYPES`.
        shape: The shape of one row's value; () for a scalar.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row's value."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{DTYPE_NAMES[self.dtype]}{list(self.shape)}"
