"""The client's side of shared memory: a server's file, mapped."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import ReplayError
from tdreplay.limits import SHARED_SLOTS_START
from tdreplay.v1 import replay_buffer_pb2 as pb

__all__ = ["MappedSlots", "Sharing"]

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

    Raises:
        OSError: the file cannot be opened from here, or is another one: the server runs as another user, in another container, or on another host.
    """

    def __init__(self, offer: pb.SharedMemory) -> None:
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

    def block(self, slot: int) -> Bytes:
        """The memory of a slot."""
        start = SHARED_SLOTS_START + slot * self.slot_bytes
        return self._memory[start : start + self.slot_bytes]
