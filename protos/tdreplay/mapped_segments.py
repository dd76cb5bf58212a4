"""Segments of shared memory that another process made, mapped into this one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import CodecError
from tdreplay.foreign_memory import NONCE_BYTES, open_memory
from tdreplay.limits import SEGMENTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["MappedSegments"]

MAX_SEGMENTS = 1 << 16


class MappedSegments:
    """The segments that the other end offers, mapped into this process. Whatever it says of them is checked before it is used.

    Attributes:
        count: the number of segments.
        segment_bytes: the size of each segment in bytes.

    Args:
        offer: what the other end says of them.
        opened: opens the file at a path, of this size and with this nonce, if it can be nothing but shared memory.

    Raises:
        OSError: the memory cannot be had from here, or it may be something else than shared memory; see `open_memory`.
        CodecError: the offer is none.
    """

    def __init__(self, offer: pb.SharedMemory, opened: Callable[[str, int, bytes], int] = open_memory) -> None:
        self.count, self.segment_bytes = offer.slots, offer.slot_bytes
        if not (1 <= self.count <= MAX_SEGMENTS and self.segment_bytes >= 1 and len(offer.nonce) == NONCE_BYTES):
            raise CodecError(f"an offer of {self.count} segments of {self.segment_bytes} bytes, with a nonce of {len(offer.nonce)} bytes, is none")
        size = SEGMENTS_START + self.count * self.segment_bytes
        file = opened(offer.path, size, offer.nonce)
        try:
            self._memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        finally:
            os.close(file)

    def block(self, segment: int) -> Bytes:
        """The memory of a segment.

        Raises:
            CodecError: there is none of that number.
        """
        if not 0 <= segment < self.count:
            raise CodecError(f"segment ({segment}) must be one of the {self.count} that were offered")
        start = SEGMENTS_START + segment * self.segment_bytes
        return self._memory[start : start + self.segment_bytes]
