"""Memory that a client on the same host maps, so that rows reach it, or come from it, without passing through a socket.

It is an anonymous file (memfd) with a fixed size. A client opens it by its name under ``/proc``, which only processes of the same user can. It has no
name in any directory, so nothing is left behind, whoever dies: the kernel frees it when neither side maps it any more. Clients in other containers do
not see the server's ``/proc``. For them the file can lie in a folder that they share with the server.

The file is divided into segments. The wire calls them slots (`shared_slots`, `slot_bytes`, `released_slots`).
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
from tdreplay.errors import CodecError, InvalidArgumentError
from tdreplay.foreign_memory import anonymous_memory, open_anonymous
from tdreplay.limits import LEAST_SHARED_BYTES, MOST_PLACED_BYTES, MOST_PLACED_SLOTS, MOST_SHARED_BYTES, SEGMENTS_START, check_whole
from tdreplay.mapped_segments import MappedSegments
from tdreplay.processes import Owner
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.system.logs import log

__all__ = ["Segments", "SharedMemory", "offer"]

PAGE = 4096
LOCAL_PEERS = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
PREFIX, SUFFIX = "tdreplay-", ".slots"
TOTAL_SHARED_BYTES = 1 << 30
"""The most shared memory of all calls of a server together. Where it is used up, blocks travel in messages."""


class Segments:
    """Shared memory in equal parts, each for one block. Several threads may lend and release them.

    Args:
        count: the number of segments.
        segment_bytes: the least size of a segment. It is rounded up to whole pages.
        folder: where their file gets a name; None: it has none.

    Raises:
        OSError: the memory cannot be had.
    """

    def __init__(self, count: int, segment_bytes: int, folder: Path | None) -> None:
        self._count, self._segment_bytes = count, -(-segment_bytes // PAGE) * PAGE
        self._free, self._lent = list(range(count)), set[int]()
        self._lock = threading.Lock()
        size = SEGMENTS_START + self._count * self._segment_bytes
        self._file, self._path = anonymous_memory(size) if folder is None else _named(folder, size)
        self._named = folder is not None
        self._owner = Owner("the shared memory")
        self._memory = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        self._nonce = secrets.token_bytes(16)
        self._memory[: len(self._nonce)] = np.frombuffer(self._nonce, np.uint8)

    def offer(self) -> pb.SharedMemory:
        """What a client needs to map them."""
        return pb.SharedMemory(path=self._path, nonce=self._nonce, slots=self._count, slot_bytes=self._segment_bytes)

    def lend(self, block_bytes: int) -> tuple[int, Bytes] | None:
        """A segment for a block of that size, and as much of its memory. It is the client's until the client releases it.

        None: no segment is free, or the block is larger than a segment.
        """
        with self._lock:
            if block_bytes > self._segment_bytes or not self._free:
                return None
            segment = self._free.pop()
            self._lent.add(segment)
        return segment, self[segment][:block_bytes]

    def release(self, segments: Iterable[int]) -> None:
        """Takes back segments that were lent.

        Raises:
            InvalidArgumentError: one of them was not lent. Those before it are free again.
        """
        with self._lock:
            for segment in segments:
                if segment not in self._lent:
                    raise InvalidArgumentError(f"released_slots ({segment}): the server has not lent it")
                self._lent.remove(segment)
                self._free.append(segment)

    def __getitem__(self, segment: int) -> Bytes:
        """The memory of a segment.

        Raises:
            InvalidArgumentError: there is no such segment.
        """
        if not 0 <= segment < self._count:
            raise InvalidArgumentError(f"slot ({segment}) must be one of the {self._count} that the server offered")
        start = SEGMENTS_START + segment * self._segment_bytes
        return self._memory[start : start + self._segment_bytes]

    def close(self) -> None:
        """Gives the memory back. The kernel frees it when the client has unmapped it too."""
        if self._named and self._owner.is_here:
            with suppress(FileNotFoundError):  # Others can write to the folder as well.
                os.unlink(self._path)
        os.close(self._file)
        del self._memory


def offer(segments: Segments | None) -> pb.SharedMemory:
    """What answers a client's wish for shared memory. It is empty where the client gets none."""
    return pb.SharedMemory() if segments is None else segments.offer()


class Budget:
    """A number of bytes, of which any thread may take some and give them back.

    Args:
        size: the bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Takes `size` bytes. False: fewer are left, and none was taken."""
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
    """Makes segments for the clients that can reach them, of at most `TOTAL_SHARED_BYTES` for all clients together.

    Attributes:
        folder: a folder that clients share with the server; None: clients whose connection shows that they are on this host get anonymous files.
    """

    folder: Path | None = None
    _budget: Budget = field(default_factory=lambda: Budget(TOTAL_SHARED_BYTES))

    @contextmanager
    def share(self, peer: str, wanted: int, block_bytes: int) -> Iterator[Segments | None]:
        """Up to `wanted` segments for blocks of `block_bytes`. None: the client cannot reach them, or blocks of that size do not pay for them.

        Args:
            peer: the client's address, as gRPC writes it.
            wanted: the number of segments that the client asks for.
            block_bytes: the size of a block.

        Raises:
            InvalidArgumentError: a number is negative.
        """
        check_whole(wanted, "shared_slots", 0)
        pays = check_whole(block_bytes, "slot_bytes", 0) >= LEAST_SHARED_BYTES and self._may_reach(peer)
        count = min(wanted, MOST_SHARED_BYTES // block_bytes) if pays else 0
        with self._taken(count * block_bytes) as enough:
            shared = self._allocated(count, block_bytes) if count and enough else None
            try:
                yield shared
            finally:
                if shared is not None:
                    shared.close()

    @contextmanager
    def reach(self, peer: str, offer: pb.SharedMemory | None, block_bytes: int) -> Iterator[MappedSegments | None]:
        """The memory that a client offers, mapped. None: it is none that this server writes to, and the client does without.

        Nothing is opened for a client whose connection does not show that it is on this host, and nothing but memory without a name that a process of
        this user made and sealed: see `tdreplay.foreign_memory`. It counts as the server's own does.

        Args:
            peer: the client's address, as gRPC writes it.
            offer: what the client says of it. None: it offers none that can be used.
            block_bytes: the size of a block, for which each segment must have room.
        """
        size = 0 if offer is None else _usable(offer, block_bytes)
        if offer is None or not size or not peer.startswith(LOCAL_PEERS):
            yield None
            return
        with self._taken(size) as enough:
            yield _reached(offer) if enough else None

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
        """Removes the files of servers that were killed: nobody holds their locks. Other users' files stay, and so does what is not a file."""
        for path in self.folder.glob(f"{PREFIX}*{SUFFIX}") if self.folder is not None else ():
            with suppress(OSError):  # Others may put anything there.
                _remove_abandoned(path)

    def _may_reach(self, peer: str) -> bool:
        """Whether a client may have the same memory. An address does not tell who shares a folder: the client tries, and does without if it fails."""
        return self.folder is not None or peer.startswith(LOCAL_PEERS)

    def _allocated(self, count: int, segment_bytes: int) -> Segments | None:
        try:
            return Segments(count, segment_bytes, self.folder)
        except OSError as error:
            log.warning(
                "no shared memory for a client, so its batches travel in messages", segments=count, bytes=count * segment_bytes, error=str(error)
            )
            return None


def _usable(offer: pb.SharedMemory, block_bytes: int) -> int:
    """The size of a client's memory in bytes; 0: it is of no use, or larger than it may be."""
    size: int = offer.slots * offer.slot_bytes
    return size if 1 <= offer.slots <= MOST_PLACED_SLOTS and offer.slot_bytes >= max(1, block_bytes) and size <= MOST_PLACED_BYTES else 0


def _reached(offer: pb.SharedMemory) -> MappedSegments | None:
    try:
        return MappedSegments(offer, open_anonymous)
    except (OSError, CodecError) as error:
        log.debug("a client's memory is not written to, so its batches travel in messages", error=str(error))
        return None


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
