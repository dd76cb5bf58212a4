"""The client's side of shared memory: a server's file, mapped."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import CodecError, ReplayError
from tdreplay.limits import SEGMENTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.answers import Answers
from tdreplay_client.transport.foreign_memory import NONCE_BYTES, open_memory

__all__ = ["MappedSegments", "Sharing", "mapped"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")

MAX_SEGMENTS = 1 << 16


class Sharing:
    """Whether the calls of one buffer use shared memory: as long as it is wanted, and was not found to be out of reach.

    Args:
        address: The address of the server.
        wanted: by the user.
    """

    def __init__(self, address: str, wanted: bool) -> None:
        self._address, self.wanted = address, wanted

    def tried(self, opened: Callable[[bool], T]) -> T:
        """``opened(True)``; where the memory that the server offers cannot be had, ``opened(False)`` from then on, and one line in the log."""
        if self.wanted:
            try:
                return opened(True)
            except OSError as error:
                if isinstance(error, ReplayError):  # A lost connection is an OSError too.
                    raise
                self.wanted = False
                log.warning("%s offers shared memory that cannot be had from here (%s): batches travel over gRPC", self._address, error)
        return opened(False)


class MappedSegments:
    """The segments that a server offers, mapped into this process. Whatever the server says of them is checked before it is used.

    Attributes:
        count: the number of segments.
        segment_bytes: the size of each segment in bytes.

    Args:
        offer: what the server says of them.

    Raises:
        OSError: the memory cannot be had from here, or it may be something else than a server's memory; see `open_memory`.
        CodecError: the offer is none.
    """

    def __init__(self, offer: pb.SharedMemory) -> None:
        self.count, self.segment_bytes = offer.slots, offer.slot_bytes
        if not (1 <= self.count <= MAX_SEGMENTS and self.segment_bytes >= 1 and len(offer.nonce) == NONCE_BYTES):
            raise CodecError(f"an offer of {self.count} segments of {self.segment_bytes} bytes, with a nonce of {len(offer.nonce)} bytes, is none")
        size = SEGMENTS_START + self.count * self.segment_bytes
        file = open_memory(offer.path, size, offer.nonce)
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
            raise CodecError(f"segment ({segment}) must be one of the {self.count} that the server offered")
        start = SEGMENTS_START + segment * self.segment_bytes
        return self._memory[start : start + self.segment_bytes]


def mapped(offer: pb.SharedMemory, answers: Answers) -> MappedSegments | None:
    """The segments that a server offers on a call; None where it offers none.

    Raises:
        OSError: they cannot be had from here.
        ServerUnavailableError: the server died since it offered them, and its memory with it: that says nothing of the next one's.
    """
    try:
        return MappedSegments(offer) if offer.path else None
    except OSError:
        answers.check_alive()
        raise
