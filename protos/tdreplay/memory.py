"""Writing into the memory of a ``bytes`` object, and why that is safe here. Nothing else in tdreplay goes behind the interpreter's back.

gRPC takes and gives ``bytes`` alone. To gather rows straight into a message, and to hand out its tensors without a copy, that memory has to be
written. CPython allows it for an object that nobody else has seen (`PyBytes_FromStringAndSize` without a string), and tdreplay holds to it: a
message is written before gRPC gets it, and a received one belongs to nothing but the batch that is made of it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["RAW", "Rows", "as_rows", "copy_rows", "has_rows", "new_bytes", "writable"]

Rows = npt.NDArray[np.void]
"""A column as n opaque rows of bytes: shape [n], itemsize the bytes of a row. NumPy copies and gathers these with one memcpy a row, whatever the
dtype, in the calling thread; torch's own copies wake a pool of threads that fight gRPC's for the cores."""

RAW = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
"""The dtypes that NumPy does not have, and those of the same size as which their bytes are seen."""

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object,)


class _Memory:
    """The memory of `owner` as NumPy's array interface describes it; an array made of this keeps `owner` alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: bytes) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (_address(owner), False), "shape": (len(owner),), "typestr": "|u1", "version": 3}


def new_bytes(size: int) -> bytes:
    """`size` bytes whose contents are undefined. Unlike ``bytes(size)`` it does not clear them first, 1 ms for 14 MB."""
    made: Any = _new_bytes(None, size)
    return made  # type: ignore[no-any-return]


def writable(data: bytes) -> npt.NDArray[np.uint8]:
    """A writable view of `data`, which must be longer than one byte (shorter ones are shared by the whole interpreter). It keeps `data` alive."""
    return np.asarray(_Memory(data))


def as_rows(column: torch.Tensor) -> Rows:
    """A view of a tensor for which `has_rows`, of shape [n, ...], whose rows have at least one byte, as rows of bytes."""
    count = column.shape[0]
    raw = column.view(RAW[column.dtype]) if column.dtype in RAW else column
    rows: Rows = np.ndarray(count, np.dtype((np.void, column.nbytes // count)), raw.numpy())
    return rows


def has_rows(column: torch.Tensor) -> bool:
    """Whether a tensor's values lie one after the other on the CPU, and mean what they say (lazily conjugated ones do not): `as_rows` may be used."""
    return column.device.type == "cpu" and column.is_contiguous() and not (column.is_conj() or column.is_neg())


def copy_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies a column into another one of the same shape and dtype. Both must have rows; where they have no bytes, there is nothing to copy."""
    if source.nbytes:
        as_rows(target)[:] = as_rows(source)
