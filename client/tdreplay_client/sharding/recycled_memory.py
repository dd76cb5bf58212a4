"""Memory for large columns that is used again once nobody has it any more."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from math import prod

import numpy as np
import torch

from tdreplay_client.reading.device_transfer import DeviceTransfer

__all__ = ["RecycledMemory"]

LARGE = 1 << 20
"""Columns of so many bytes lie in memory that is used again: the system clears new pages first, which takes as long as the copy into them."""
MOST_SPARE = 8
"""Pieces that are kept while nobody has them."""


class RecycledMemory:
    """Makes the memory of columns.

    Args:
        transfer: Makes that of small ones, and of all that go on to another device.
    """

    def __init__(self, transfer: DeviceTransfer) -> None:
        self._transfer = transfer
        self._spare: deque[mmap.mmap] = deque(maxlen=MOST_SPARE)  # Finalizers, which may run at any moment, append: one operation of a deque is safe.

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory for a column whose contents are undefined."""
        size = prod(shape) * dtype.itemsize
        if size < LARGE or not self._transfer.on_host:
            return self._transfer.memory(shape, dtype)
        memory = self._piece(size)
        view = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(view, self._spare.append, memory).atexit = False  # Each tensor of it keeps the view alive.
        return torch.from_numpy(view).view(dtype).view(shape)

    def _piece(self, size: int) -> mmap.mmap:
        for _ in range(len(self._spare)):
            try:
                piece = self._spare.popleft()
            except IndexError:  # Another thread was faster.
                break
            if size <= len(piece) <= 2 * size:
                return piece
        return mmap.mmap(-1, size)
