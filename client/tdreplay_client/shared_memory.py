"""The client's side of shared memory: a server's file, mapped."""

from __future__ import annotations

import mmap
import os

import numpy as np

from tdreplay.block import Bytes
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["MappedSlots"]

PAGE = 4096


class MappedSlots:
    """The slots that a server offers, mapped into this process.

    Raises:
        OSError: the file cannot be opened from here, or is another one: the server runs as another user, in another container, or on another host.
    """

    def __init__(self, offer: pb.SharedMemory) -> None:
        self.slots, self._slot_bytes = offer.slots, offer.slot_bytes
        size = PAGE + offer.slots * offer.slot_bytes
        file = os.open(offer.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != size:
                raise OSError(f"{offer.path} has {os.fstat(file).st_size} bytes, not {size}")
            self._memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        finally:
            os.close(file)
        if self._memory[: len(offer.nonce)].tobytes() != offer.nonce:
            raise OSError(f"{offer.path} is not the server's memory")

    def block(self, slot: int) -> Bytes:
        """The memory of a slot. It is the server's again once the credit for it is granted."""
        start = PAGE + slot * self._slot_bytes
        return self._memory[start : start + self._slot_bytes]
