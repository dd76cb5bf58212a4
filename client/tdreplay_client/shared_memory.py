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
from tdreplay.errors import ReplayError
from tdreplay.limits import SHARED_SLOTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.channel import Answers

__all__ = ["MappedSlots", "Sharing", "mapped"]

log = logging.getLogger("tdreplay")
T = TypeVar("T")


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


class MappedSlots:
    """The slots that a server offers, mapped into this process.

    Attributes:
        slots: how many there are.
        slot_bytes: the size of each.

    Args:
        offer: what the server says of them.
        reserve: how many are never lent to the user.

    Raises:
        OSError: the file cannot be opened from here, or is another one: the server runs as another user, in another container, or on another host.
    """

    def __init__(self, offer: pb.SharedMemory, reserve: int = 2) -> None:
        self.slots, self.slot_bytes = offer.slots, offer.slot_bytes
        size = SHARED_SLOTS_START + offer.slots * offer.slot_bytes
        file = os.open(offer.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != size:
                raise OSError(f"{offer.path} has {os.fstat(file).st_size} bytes, not {size}")
            self._memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        finally:
            os.close(file)
        if self._memory[: len(offer.nonce)].tobytes() != offer.nonce:
            raise OSError(f"{offer.path} is not the server's memory")
        self._reserve, self._borrowed = reserve, 0
        # Changed by finalizers, which may run in any thread and at any moment: one operation of a deque or a set is safe then, a lock is not.
        self._returned: deque[int] = deque()
        self._lent: set[int] = set()

    def block(self, slot: int) -> Bytes:
        """The memory of a slot."""
        start = SHARED_SLOTS_START + slot * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]

    def borrow(self, slot: int) -> Bytes:
        """The memory of a slot that the server lends. It may be given back to the server when nothing refers to this memory any more."""
        memory = self.block(slot)
        self._borrowed += 1
        weakref.finalize(memory, self._give_back, slot).atexit = False
        return memory

    def _give_back(self, slot: int) -> None:
        self._lent.discard(slot)
        self._returned.append(slot)

    def lend(self, slot: int) -> bool:
        """Whether a batch in a borrowed slot may be lent on to the user, for as long as the user likes: some slots stay for the batches to come."""
        if slot not in self._lent and len(self._lent) >= self.slots - self._reserve:
            return False
        self._lent.add(slot)
        return True

    @property
    def unreturned(self) -> int:
        """Slots that are in use here."""
        return self._borrowed - len(self._returned)

    def returned(self) -> list[int]:
        """The slots to be given back to the server: the caller sees to it, and they do not count as borrowed any more."""
        slots = [self._returned.popleft() for _ in range(len(self._returned))]
        self._borrowed -= len(slots)
        return slots


def mapped(offer: pb.SharedMemory, answers: Answers, reserve: int = 2) -> MappedSlots | None:
    """The slots that a server offers on a call; None where it offers none. `reserve`: as of `MappedSlots`.

    Raises:
        OSError: they cannot be had from here.
        ServerUnavailableError: the server died since it offered them, and its memory with it: that says nothing of the next one's.
    """
    try:
        return MappedSlots(offer, reserve) if offer.path else None
    except OSError:
        answers.check_alive()
        raise
