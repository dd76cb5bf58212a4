"""Memory of this process for whole batches, to which servers on this host write rows."""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from collections import deque

import numpy as np

from tdreplay.block import Bytes
from tdreplay.foreign_memory import NONCE_BYTES, anonymous_memory
from tdreplay.limits import SEGMENTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["BatchMemory"]

PAGE = 4096


class BatchMemory:
    """Slots of one batch each. One thread takes them; they come back from any.

    Servers write to a slot when they are asked to, and to no other. The kernel frees the memory when neither side maps it any more.

    Attributes:
        slots: how many there are.
        slot_bytes: the size of each.
        reserve: how many are never lent to the user, because the next batches need them.

    Args:
        slots: how many there are.
        block_bytes: the least size of a slot. It is rounded up to whole pages.
        reserve: the same.

    Raises:
        OSError: the memory cannot be had.
    """

    def __init__(self, slots: int, block_bytes: int, reserve: int) -> None:
        self.slots, self.slot_bytes, self.reserve = slots, -(-block_bytes // PAGE) * PAGE, reserve
        size = SEGMENTS_START + slots * self.slot_bytes
        self._file, self._path = anonymous_memory(size)
        self.close = weakref.finalize(self, os.close, self._file)
        self._memory = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._memory[:NONCE_BYTES] = np.frombuffer(self._nonce, np.uint8)
        # Changed by finalizers, which may run in any thread and at any moment: one operation of a deque or a set is safe then, a lock is not.
        self._free, self._lent = deque(range(slots)), set[int]()

    def offer(self) -> pb.SharedMemory:
        """What a server needs to map it, as long as it was not closed."""
        return pb.SharedMemory(path=self._path, nonce=self._nonce, slots=self.slots, slot_bytes=self.slot_bytes)

    @property
    def free(self) -> int:
        """How many slots can be taken."""
        return len(self._free)

    def take(self) -> int:
        """A free slot, of which there is one at least."""
        return self._free.popleft()

    def borrowed(self, slot: int) -> Bytes:
        """The memory of a slot. The slot is free again when nothing refers to this memory any more."""
        start = SEGMENTS_START + slot * self.slot_bytes
        memory = self._memory[start : start + self.slot_bytes]
        weakref.finalize(memory, _give_back, self._free, self._lent, slot).atexit = False
        return memory

    def lend(self, slot: int) -> bool:
        """Whether the user may keep what lies in a borrowed slot. Where not, it is to be copied."""
        if len(self._lent) >= self.slots - self.reserve:
            return False
        self._lent.add(slot)
        return True


def _give_back(free: deque[int], lent: set[int], slot: int) -> None:
    lent.discard(slot)
    free.append(slot)
