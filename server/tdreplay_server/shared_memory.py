"""Memory that a client on the same host maps, so that rows reach it, or come from it, without passing through a socket.

It is an anonymous file (memfd) with a fixed size. A client opens it by its name under ``/proc``, which only processes of the same user can. It has no
name in any directory, so nothing is left behind, whoever dies: the kernel frees it when neither side maps it any more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import LEAST_SHARED_BYTES, MOST_SHARED_BYTES, SHARED_SLOTS_START, check_whole
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.logs import log

__all__ = ["SharedSlots", "offer", "share"]

PAGE = 4096
LOCAL_PEERS = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedSlots:
    """Slots for blocks.

    Raises:
        OSError: the memory cannot be had.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._slots, self._slot_bytes = slots, -(-slot_bytes // PAGE) * PAGE
        self._free = list(range(slots))
        self._file = os.memfd_create("tdreplay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = SHARED_SLOTS_START + self._slots * self._slot_bytes
        os.posix_fallocate(self._file, 0, size)  # Now: memory that runs out later would be a SIGBUS.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, SEALS)
        self._memory = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        self._nonce = secrets.token_bytes(16)
        self._memory[: len(self._nonce)] = np.frombuffer(self._nonce, np.uint8)

    def offer(self) -> pb.SharedMemory:
        """What a client needs to map them."""
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        return pb.SharedMemory(path=path, nonce=self._nonce, slots=self._slots, slot_bytes=self._slot_bytes)

    def lend(self, block_bytes: int) -> tuple[int, Bytes] | None:
        """A slot for a block of that size, which is the client's until it releases it, and its memory; None where it fits into none that is free."""
        if block_bytes > self._slot_bytes or not self._free:
            return None
        slot = self._free.pop()
        return slot, self[slot][:block_bytes]

    def release(self, slots: Iterable[int]) -> None:
        """Takes back what was lent.

        Raises:
            InvalidArgumentError: one of them was not.
        """
        for slot in slots:
            if not 0 <= slot < self._slots or slot in self._free:
                raise InvalidArgumentError(f"released_slots ({slot}): the server has not lent it")
            self._free.append(slot)

    def __getitem__(self, slot: int) -> Bytes:
        """The memory of a slot.

        Raises:
            InvalidArgumentError: there is no such slot.
        """
        if not 0 <= slot < self._slots:
            raise InvalidArgumentError(f"slot ({slot}) must be one of the {self._slots} that the server offered")
        start = SHARED_SLOTS_START + slot * self._slot_bytes
        return self._memory[start : start + self._slot_bytes]

    def close(self) -> None:
        """Gives the memory back, once the client has unmapped it too."""
        os.close(self._file)
        del self._memory


def offer(slots: SharedSlots | None) -> pb.SharedMemory:
    """What answers a client's wish for shared memory."""
    return pb.SharedMemory() if slots is None else slots.offer()


@contextmanager
def share(context: grpc.ServicerContext, wanted: int, block_bytes: int) -> Iterator[SharedSlots | None]:
    """Up to `wanted` slots for blocks of that size, where the client is on this host and they pay; else None.

    Raises:
        InvalidArgumentError: the size is negative.
    """
    pays = check_whole(block_bytes, "slot_bytes", 0) >= LEAST_SHARED_BYTES and context.peer().startswith(LOCAL_PEERS)
    slots = min(wanted, MOST_SHARED_BYTES // block_bytes) if pays else 0
    shared = _allocated(slots, block_bytes) if slots > 0 else None
    try:
        yield shared
    finally:
        if shared is not None:
            shared.close()


def _allocated(slots: int, block_bytes: int) -> SharedSlots | None:
    try:
        return SharedSlots(slots, block_bytes)
    except OSError as error:
        log.warning("no shared memory for a client, so its batches travel in messages", slots=slots, bytes=slots * block_bytes, error=str(error))
        return None
