"""Writing into the memory of a ``bytes`` object, and why that is safe here. Nothing else in tdreplay goes behind the interpreter's back.

gRPC takes and gives ``bytes`` alone. To gather rows straight into a message, tdreplay writes into such an object; and users may write into the
tensors of a received one, which are handed out without a copy. CPython allows writes to an object that nobody else has seen
(`PyBytes_FromStringAndSize` without a string). tdreplay keeps to this rule: it writes a message before gRPC gets it, and a received message belongs
only to the batch that is made of it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["RAW", "Rows", "as_rows", "copy_rows", "has_rows", "new_bytes", "rows_of", "writable"]

Rows = npt.NDArray[np.void]
"""A column as n opaque rows of bytes: shape [n]; an item has the bytes of one row. NumPy copies and gathers such rows in the calling thread, with one
memcpy a row, whatever the dtype. torch's own copies wake a pool of threads that compete with gRPC's for the cores."""

RAW = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
"""The dtypes that NumPy does not have -> the dtype of the same size that stands for them when NumPy handles their bytes."""

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype, _address.argtypes = ctypes.c_void_p, (ctypes.py_object,)


class _Memory:
    """The memory of `owner`, described by NumPy's array interface. An array that is made of it keeps `owner` alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: bytes) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (_address(owner), False), "shape": (len(owner),), "typestr": "|u1", "version": 3}


def new_bytes(size: int) -> bytes:
    """`size` bytes whose contents are undefined. ``bytes(size)`` would clear them first, which takes 1 ms for 14 MB."""
    made: Any = _new_bytes(None, size)
    return made  # type: ignore[no-any-return]


def writable(data: bytes) -> npt.NDArray[np.uint8]:
    """A writable view of `data`, which must be longer than one byte (shorter ones are shared by the whole interpreter). It keeps `data` alive."""
    return np.asarray(_Memory(data))


def as_rows(column: torch.Tensor) -> Rows:
    """A view of a tensor of shape [n, ...] as rows of bytes. `has_rows` must hold for the tensor, and a row must have at least one byte."""
    count = column.shape[0]
    raw = column.view(RAW[column.dtype]) if column.dtype in RAW else column
    rows: Rows = np.ndarray(count, np.dtype((np.void, column.nbytes // count)), raw.numpy())
    return rows


def has_rows(column: torch.Tensor) -> bool:
    """Whether `as_rows` may be used: the tensor's values lie one after the other on the CPU, none of them lazily conjugated or negated."""
    return column.device.type == "cpu" and column.is_contiguous() and not (column.is_conj() or column.is_neg())


def rows_of(column: torch.Tensor) -> Rows:
    """A column of any device and layout, whose rows have at least one byte, as rows of bytes: a view where it can be."""
    return as_rows(column if has_rows(column) else column.cpu().resolve_conj().resolve_neg().contiguous())


def copy_rows(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies a column into another one of the same shape and dtype. `has_rows` must hold for both. Columns without bytes are left as they are."""
    if source.nbytes:
        as_rows(target)[:] = as_rows(source)
