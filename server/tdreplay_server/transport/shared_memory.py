"""Memory that a client on the same host maps, so that rows reach it, or come from it, without passing through a socket.

It is an anonymous file (memfd) with a fixed size. A client opens it by its name under ``/proc``, which only processes of the same user can. It has no
name in any directory, so nothing is left behind, whoever dies: the kernel frees it when neither side maps it any more. Clients in other containers do
not see the server's ``/proc``: for them it can be a file in a folder that they share with the server.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tdreplay.block import Bytes
from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import LEAST_SHARED_BYTES, MOST_SHARED_BYTES, SHARED_SLOTS_START, check_whole
from tdreplay.processes import Owner
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.system.logs import log

__all__ = ["SharedMemory", "SharedSlots", "offer"]

PAGE = 4096
LOCAL_PEERS = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
PREFIX, SUFFIX = "tdreplay-", ".slots"
TOTAL_SHARED_BYTES = 1 << 30
"""Of all calls of a server together. Where no more can be had, blocks travel in messages."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedSlots:
    """Slots for blocks. Several threads may lend and release them.

    Args:
        slots: how many.
        slot_bytes: that a block may have.
        folder: where their file gets a name; None: it has none.

    Raises:
        OSError: the memory cannot be had.
    """

    def __init__(self, slots: int, slot_bytes: int, folder: Path | None) -> None:
        self._slots, self._slot_bytes = slots, -(-slot_bytes // PAGE) * PAGE
        self._free, self._lent = list(range(slots)), set[int]()
        self._lock = threading.Lock()
        size = SHARED_SLOTS_START + self._slots * self._slot_bytes
        self._file, self._path = _anonymous(size) if folder is None else _named(folder, size)
        self._named = folder is not None
        self._owner = Owner("the shared memory")
        self._memory = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        self._nonce = secrets.token_bytes(16)
        self._memory[: len(self._nonce)] = np.frombuffer(self._nonce, np.uint8)

    def offer(self) -> pb.SharedMemory:
        """What a client needs to map them."""
        return pb.SharedMemory(path=self._path, nonce=self._nonce, slots=self._slots, slot_bytes=self._slot_bytes)

    def lend(self, block_bytes: int) -> tuple[int, Bytes] | None:
        """A slot for a block of that size, which is the client's until it releases it, and its memory; None where it fits into none that is free."""
        with self._lock:
            if block_bytes > self._slot_bytes or not self._free:
                return None
            slot = self._free.pop()
            self._lent.add(slot)
        return slot, self[slot][:block_bytes]

    def release(self, slots: Iterable[int]) -> None:
        """Takes back what was lent.

        Raises:
            InvalidArgumentError: one of them was not.
        """
        with self._lock:
            for slot in slots:
                if slot not in self._lent:
                    raise InvalidArgumentError(f"released_slots ({slot}): the server has not lent it")
                self._lent.remove(slot)
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
        if self._named and self._owner.is_here:
            with suppress(FileNotFoundError):  # Others can write to the folder as well.
                os.unlink(self._path)
        os.close(self._file)
        del self._memory


def offer(slots: SharedSlots | None) -> pb.SharedMemory:
    """What answers a client's wish for shared memory."""
    return pb.SharedMemory() if slots is None else slots.offer()


class Budget:
    """Bytes that may be taken, by any thread, and come back."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Takes so many; False where fewer are left."""
        with self._lock:
            enough = size <= self._left
            self._left -= size if enough else 0
            return enough

    def give_back(self, size: int) -> None:
        """Gives back what was taken."""
        with self._lock:
            self._left += size


@dataclass(frozen=True)
class SharedMemory:
    """Makes slots for the clients that can reach them, of at most `TOTAL_SHARED_BYTES` in all.

    Attributes:
        folder: that clients share with the server; None: those whose connection shows that they are on this host get anonymous files.
    """

    folder: Path | None = None
    _budget: Budget = field(default_factory=lambda: Budget(TOTAL_SHARED_BYTES))

    @contextmanager
    def share(self, peer: str, wanted: int, block_bytes: int) -> Iterator[SharedSlots | None]:
        """Up to `wanted` slots for blocks of that size, where the client may reach them and they pay; else None.

        Raises:
            InvalidArgumentError: the size, or the number of slots, is negative.
        """
        check_whole(wanted, "shared_slots", 0)
        pays = check_whole(block_bytes, "slot_bytes", 0) >= LEAST_SHARED_BYTES and self._may_reach(peer)
        slots = min(wanted, MOST_SHARED_BYTES // block_bytes) if pays else 0
        with self._taken(slots * block_bytes) as enough:
            shared = self._allocated(slots, block_bytes) if slots and enough else None
            try:
                yield shared
            finally:
                if shared is not None:
                    shared.close()

    @contextmanager
    def _taken(self, size: int) -> Iterator[bool]:
        enough = self._budget.take(size)
        if not enough:
            log.debug("all shared memory is in use, so a client's batches travel in messages", bytes=size)
        try:
            yield enough
        finally:
            if enough:
                self._budget.give_back(size)

    def sweep(self) -> None:
        """Removes the files of servers that were killed: nobody holds their locks. Those of other users stay, and so does what is no file."""
        for path in self.folder.glob(f"{PREFIX}*{SUFFIX}") if self.folder is not None else ():
            with suppress(OSError):  # Whatever else others put there is nothing to this server.
                _remove_abandoned(path)

    def _may_reach(self, peer: str) -> bool:
        """Who shares a folder cannot be told from an address: the client finds out, and does without where it does not."""
        return self.folder is not None or peer.startswith(LOCAL_PEERS)

    def _allocated(self, slots: int, block_bytes: int) -> SharedSlots | None:
        try:
            return SharedSlots(slots, block_bytes, self.folder)
        except OSError as error:
            log.warning("no shared memory for a client, so its batches travel in messages", slots=slots, bytes=slots * block_bytes, error=str(error))
            return None


def _anonymous(size: int) -> tuple[int, str]:
    """A file that has no name, whose size cannot be changed, and the path under which processes of this user can open it."""
    file = os.memfd_create("tdreplay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(file, 0, size)  # Now: memory that runs out later would be a SIGBUS.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
    except OSError:
        os.close(file)
        raise
    return file, f"/proc/{os.getpid()}/fd/{file}"


def _named(folder: Path, size: int) -> tuple[int, str]:
    """A file in a folder, which only this user can open, locked for as long as this process has it open."""
    file, path = tempfile.mkstemp(SUFFIX, PREFIX, folder)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.posix_fallocate(file, 0, size)
        if not os.fstat(file).st_nlink:
            raise FileNotFoundError(f"{path}: a server that started removed it before it was locked")
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(file)
        raise
    return file, path


def _remove_abandoned(path: Path) -> None:
    """Removes a file of this user that nobody has locked.

    Raises:
        OSError: it is locked, or cannot be opened as a file: a link, a socket, another user's.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # To open a pipe would wait for its other end.
    try:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(file)
