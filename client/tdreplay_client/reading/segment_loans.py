"""Segments that a server lends, each with a batch in it."""

from __future__ import annotations

import weakref

from tdreplay.block import Bytes
from tdreplay.mapped_segments import MappedSegments
from tdreplay_client.reading.batch_credit import BatchCredit

__all__ = ["SegmentLoans"]


class SegmentLoans:
    """The shared memory of one call, and the credit of that call, which knows what of the memory is in use.

    Args:
        memory: the segments.
        credit: the credit of the call.
    """

    def __init__(self, memory: MappedSegments, credit: BatchCredit) -> None:
        self._memory, self._credit = memory, credit

    def borrow(self, segment: int) -> Bytes:
        """The memory of a segment that the server lends. The segment is given back to the server when nothing refers to this memory any more.

        Raises:
            CodecError: there is none of that number, or it was not given back since the server lent it last.
        """
        memory = self._memory.block(segment)
        self._credit.borrow(segment)
        weakref.finalize(memory, self._credit.give_back, segment).atexit = False
        return memory

    def lend(self, segment: int) -> bool:
        """As `BatchCredit.lend`."""
        return self._credit.lend(segment)
