"""The client's side of shared memory: a server's file, mapped."""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import CodecError, ReplayError
from tdreplay.limits import SEGMENTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.transport.channel import Answers
from tdreplay_client.transport.foreign_memory import NONCE_BYTES, open_memory

__all__ = ["MappedSegments", "Sharing", "mapped"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")

MAX_SEGMENTS = 1 << 16


class Sharing:
    """Whether the calls of one buffer use shared memory: as long as it is wanted, and was not found to be out of reach.

    Args:
        address: of the server.
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
        count: how many there are.
        segment_bytes: the size of each.

    Args:
        offer: what the server says of them.
        reserve: how many are never lent to the user.

    Raises:
        OSError: the memory cannot be had from here, or it may be something else than a server's memory; see `open_memory`.
        CodecError: the offer is none.
    """

    def __init__(self, offer: pb.SharedMemory, reserve: int = 2) -> None:
        self.count, self.segment_bytes = offer.slots, offer.slot_bytes
        if not (1 <= self.count <= MAX_SEGMENTS and self.segment_bytes >= 1 and len(offer.nonce) == NONCE_BYTES):
            raise CodecError(f"an offer of {self.count} segments of {self.segment_bytes} bytes, with a nonce of {len(offer.nonce)} bytes, is none")
        size = SEGMENTS_START + self.count * self.segment_bytes
        file = open_memory(offer.path, size, offer.nonce)
        try:
            self._memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        finally:
            os.close(file)
        self._reserve, self._borrowed = reserve, 0
        # Changed by finalizers, which may run in any thread and at any moment: one operation of a deque or a set is safe then, a lock is not.
        self._returned: deque[int] = deque()
        self._in_use: set[int] = set()
        self._lent: set[int] = set()

    def block(self, segment: int) -> Bytes:
        """The memory of a segment.

        Raises:
            CodecError: there is none of that number.
        """
        if not 0 <= segment < self.count:
            raise CodecError(f"segment ({segment}) must be one of the {self.count} that the server offered")
        start = SEGMENTS_START + segment * self.segment_bytes
        return self._memory[start : start + self.segment_bytes]

    def borrow(self, segment: int) -> Bytes:
        """The memory of a segment that the server lends. It may be given back to the server when nothing refers to this memory any more.

        Raises:
            CodecError: there is none of that number, or it was not given back since the server lent it last.
        """
        memory = self.block(segment)
        if segment in self._in_use:
            raise CodecError(f"segment ({segment}): the server lends it twice")
        self._in_use.add(segment)
        self._borrowed += 1
        weakref.finalize(memory, self._give_back, segment).atexit = False
        return memory

    def _give_back(self, segment: int) -> None:
        self._lent.discard(segment)
        self._in_use.discard(segment)
        self._returned.append(segment)

    def lend(self, segment: int) -> bool:
        """Whether the user may keep a batch that lies in a borrowed segment. Some segments are never lent: the next batches need them."""
        if segment not in self._lent and len(self._lent) >= self.count - self._reserve:
            return False
        self._lent.add(segment)
        return True

    @property
    def unreturned(self) -> int:
        """Slots that are in use here."""
        return self._borrowed - len(self._returned)

    def returned(self) -> list[int]:
        """The segments to be given back to the server: the caller sees to it, and they do not count as borrowed any more."""
        segments = [self._returned.popleft() for _ in range(len(self._returned))]
        self._borrowed -= len(segments)
        return segments


def mapped(offer: pb.SharedMemory, answers: Answers, reserve: int = 2) -> MappedSegments | None:
    """The segments that a server offers on a call; None where it offers none. `reserve`: as of `MappedSegments`.

    Raises:
        OSError: they cannot be had from here.
        ServerUnavailableError: the server died since it offered them, and its memory with it: that says nothing of the next one's.
    """
    try:
        return MappedSegments(offer, reserve) if offer.path else None
    except OSError:
        answers.check_alive()
        raise
