"""Whether the bytes of a journal are those that were written: a check of a SQLite database in WAL mode that nobody has open.

SQLite does not look at unused bytes, and takes a write-ahead log (WAL) to end before its first broken frame. Here each byte is vouched for:

- a page of the database by its digest in a file of checksums, or, where the WAL holds the page, by being the latest committed there;
- the WAL by its own cumulative checksums (https://sqlite.org/fileformat2.html#walformat), up to a frame that was never written to its end;
- the file of checksums by a digest of itself.

So it takes a database whose WAL is copied into it in three steps: ``wal_checkpoint(FULL)``, `NewChecksums.write`, ``wal_checkpoint(TRUNCATE)``,
with no commit in between: SQLite would begin the WAL anew and leave old frames behind the new ones. A kill between any two writes leaves a state that
passes.

Layout of ``<database>.checksums``, little-endian: ``tdrpages``; the page size and the number of pages, u32; 8 bytes of BLAKE2b for each page; 16
bytes of BLAKE2b over all before.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from tdreplay.errors import CorruptDataError
from tdreplay_server.system.disk import write_at
from tdreplay_server.system.disk_errors import unreadable
from tdreplay_server.system.private_files import open_file, read_file

__all__ = ["NewChecksums", "check_journal", "write_checksums"]

HEAD = struct.Struct("<8sII")
MAGIC = b"tdrpages"
DIGEST_BYTES, SEAL_BYTES = 8, 16
PAGE_SIZES = frozenset(1 << power for power in range(9, 17))

LOG_HEADER = struct.Struct(">8I")  # Magic, version, page size, sequence number of the checkpoint, two salts, two checksums.
LOG_VERSION = 3007000
WORD_ORDERS = {0x377F0682: "<u4", 0x377F0683: ">u4"}
"""Magic of a WAL -> how its checksums read the bytes. The checksums themselves are big-endian in both."""
FRAME_HEADER_BYTES = 24

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Checksums:
    """The checksums of the pages of a database, as they were when the log was copied into it last: `DIGEST_BYTES` of `digests` for each page."""

    page_size: int
    digests: bytes

    @property
    def pages(self) -> int:
        """That the database had."""
        return len(self.digests) // DIGEST_BYTES

    def match(self, number: int, page: bytes) -> bool:
        """Whether this is the page of that number, from 1."""
        return _digest(page) == self.digests[(number - 1) * DIGEST_BYTES : number * DIGEST_BYTES]


@dataclass(frozen=True)
class Log:
    """What a WAL holds of committed transactions.

    Attributes:
        pages: page number -> its latest bytes.
        size: pages of the database after the last commit; 0 where there is none.
    """

    pages: dict[int, memoryview] = field(default_factory=dict)
    size: int = 0

    def match(self, number: int, page: bytes) -> bool:
        """Whether these are the page of that number, or its first bytes: a kill can cut the copy of a page that extends the database."""
        return number in self.pages and self.pages[number][: len(page)] == page


class NewChecksums:
    """A file of checksums to be. What it takes to write it is opened at once, before anything changes: there may be no descriptor left.

    Args:
        database: The file for whose bytes it will vouch.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, database: Path) -> None:
        self._database, self._target = database, _beside(database, ".checksums")
        self._scratch = _beside(self._target, ".new")
        self._scratch.unlink(missing_ok=True)
        with ExitStack() as opened:
            self._file = open_file(self._scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            opened.callback(os.close, self._file)
            self._directory = os.open(database.parent, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, self._directory)
            self._opened = opened.pop_all()

    def write(self, file: int | None = None, *, durable: bool = False) -> None:
        """Vouches for the database as it is now, with all committed pages copied into it. The last checksums are replaced at once.

        Args:
            file: a descriptor of the database, to read. Who has the database open over SQLite must give one, and keep it open for as long: to close
                any descriptor of a file takes back all locks that the process has on it (fcntl(2)), so another process could open the database, and
                would remove the WAL when it closes it.
            durable: return when the checksums are on the disk.

        Raises:
            CorruptDataError: the database, which must have whole pages, is none.
        """
        data = read_file(self._database) if file is None else os.pread(file, os.fstat(file).st_size, 0)
        size = _page_size(self._database, data)
        body = HEAD.pack(MAGIC, size, len(data) // size) + b"".join(_digest(data[start : start + size]) for start in range(0, len(data), size))
        write_at(self._file, memoryview(body + _seal(body)), 0)
        if durable:
            os.fsync(self._file)
        self._scratch.rename(self._target)
        if durable:
            self.sync_directory()

    def sync_directory(self) -> None:
        """Returns when the entries of the database's directory are on the disk."""
        os.fsync(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._opened.close()


def write_checksums(database: Path, *, file: int | None = None, durable: bool = False) -> None:
    """Vouches for the database as it is now. Arguments and errors: as `NewChecksums.write`."""
    with NewChecksums(database) as checksums:
        checksums.write(file, durable=durable)


def check_journal(database: Path, *, torn_end: bool = False) -> None:
    """Passes where the database, its WAL and its checksums hold what was written, after a clean close or a kill. Nobody may have it open.

    What it cannot tell from a kill: that the WAL is missing, or ends too early.

    Args:
        database: its file.
        torn_end: whether the WAL may end in frames that are not what was written, as after a loss of power: SQLite ignores them.

    Raises:
        CorruptDataError: names the file, and the page, the frame or the bytes that are wrong.
    """
    checksums = _read_checksums(_beside(database, ".checksums"))
    log = _read_log(_beside(database, "-wal"), checksums.page_size, torn_end)
    _check_pages(database, checksums, log)


def _check_pages(database: Path, checksums: Checksums, log: Log) -> None:
    data, size = _read(database), checksums.page_size
    if len(data) < checksums.pages * size:
        raise CorruptDataError(f"{database} has {len(data)} bytes, and must have the {checksums.pages} pages of {size} bytes of its checksums")
    for number, start in enumerate(range(0, len(data), size), 1):
        page = data[start : start + size]
        if not checksums.match(number, page) and not log.match(number, page):
            raise CorruptDataError(f"{database}: page {number} (bytes [{start}, {start + len(page)})) is not what was written")
    missing = set(range(checksums.pages + 1, log.size + 1)) - log.pages.keys()
    if missing:
        raise CorruptDataError(f"{database}: page {min(missing)} of {log.size} is missing, also in its write-ahead log")


def _page_size(database: Path, data: bytes) -> int:
    size = int.from_bytes(data[16:18], "big")
    size = 1 << 16 if size == 1 else size  # 65536 does not fit into the two bytes.
    if size not in PAGE_SIZES or not data or len(data) % size:
        raise CorruptDataError(f"{database} is not a SQLite database: it has {len(data)} bytes, and pages of {size}")
    return size


def _read_checksums(path: Path) -> Checksums:
    data = _read(path)
    body, seal = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if len(body) < HEAD.size or seal != _seal(body):
        raise CorruptDataError(f"{path} is not what was written: the last {SEAL_BYTES} of its {len(data)} bytes are not the digest of the others")
    magic, page_size, pages = HEAD.unpack_from(body)
    if magic != MAGIC or page_size not in PAGE_SIZES or len(body) != HEAD.size + pages * DIGEST_BYTES:
        raise CorruptDataError(f"{path} is not a file of checksums that this version knows: it begins with {body[: HEAD.size]!r}")
    return Checksums(page_size, body[HEAD.size :])


def _read_log(path: Path, page_size: int, torn_end: bool) -> Log:
    data = _read(path) if path.exists() else b""
    if len(data) < LOG_HEADER.size:  # SQLite writes the header at once, and first: nothing was committed.
        return Log()
    order = _check_log_header(path, data, page_size)
    frame_size = FRAME_HEADER_BYTES + page_size
    words: Words = np.ndarray(((len(data) - LOG_HEADER.size) // frame_size, frame_size // 4), order, data, LOG_HEADER.size)
    right = _right_frames(data, words)
    if right < len(words) and not torn_end:
        start = LOG_HEADER.size + right * frame_size
        raise CorruptDataError(f"{path}: frame {right + 1} of {len(words)} (bytes [{start}, {start + frame_size})) is not what was written")
    words = words[:right]
    return _committed(memoryview(data)[LOG_HEADER.size :], words.view(">u4")[:, :2].tolist(), frame_size)


def _committed(frames: memoryview, heads: list[tuple[int, int]], frame_size: int) -> Log:
    """What the frames hold up to the last that commits. A head is a page number, and the size of the database where the frame commits; else 0."""
    last = next((frame for frame in reversed(range(len(heads))) if heads[frame][1]), -1)
    pages = {
        number: frames[frame * frame_size + FRAME_HEADER_BYTES : (frame + 1) * frame_size] for frame, (number, _) in enumerate(heads[: last + 1])
    }
    return Log(pages, heads[last][1]) if pages else Log()


def _check_log_header(path: Path, data: bytes, page_size: int) -> str:
    """How the checksums of this WAL read its bytes."""
    magic, version, size, _, _, _, *sums = LOG_HEADER.unpack_from(data)
    order = WORD_ORDERS.get(magic)
    if order is None or version != LOG_VERSION or size != page_size:
        raise CorruptDataError(f"{path}: magic ({magic:#x}), version ({version}) or page size ({size}, must be {page_size}) is wrong")
    words = np.ndarray((1, 6), order, data)
    if _checksums(words, np.zeros((1, 2), np.uint32))[0].tolist() != sums:
        raise CorruptDataError(f"{path}: the checksum of the header (bytes [0, {LOG_HEADER.size})) is wrong")
    return order


def _right_frames(data: bytes, words: Words) -> int:
    """How many frames, from the first on, have the WAL's salts, and the checksum of all bytes up to their ends."""
    salts, first = np.ndarray((2, 2), ">u4", data, 16)
    fields = words.view(">u4")
    sums = fields[:, 4:6]
    carried = np.concatenate((first[None], sums))[:-1]  # As they stand there: where one is wrong, its own frame is found first.
    summed = np.concatenate((words[:, :2], words[:, FRAME_HEADER_BYTES // 4 :]), axis=1)
    right = (fields[:, 2:4] == salts).all(axis=1) & (_checksums(summed, carried) == sums).all(axis=1)
    return len(words) if right.all() else int(np.argmin(right))


def _checksums(words: npt.NDArray[Any], carried: npt.NDArray[Any]) -> Words:
    """SQLite's checksum of each row of `words`, which goes on from the two numbers in its row of `carried`: shape [n, 2].

    It is ``s0 += word + s1; s1 += word + s0``, in turn, so it is a sum: the word at place j from the end counts F(j) times in s0 and F(j + 1) times
    in s1, where F are Fibonacci's numbers. A carried s1 counts as a word before the first, and a carried s0 as part of the first.
    """
    terms: Words = np.concatenate((carried[:, 1:], words), axis=1, dtype=np.uint32)
    terms[:, 1] += carried[:, 0].astype(np.uint32)
    sums: Words = terms @ _weights(terms.shape[1])
    return sums


@lru_cache
def _weights(words: int) -> Words:
    """Shape [words, 2], from the first word to the last; modulo 2^32."""
    numbers = [0, 1]
    for _ in range(words - 1):
        numbers.append((numbers[-1] + numbers[-2]) % (1 << 32))
    return np.array(list(pairwise(numbers))[::-1], np.uint32)


def _digest(page: bytes) -> bytes:
    return blake2b(page, digest_size=DIGEST_BYTES).digest()


def _seal(body: bytes) -> bytes:
    return blake2b(body, digest_size=SEAL_BYTES).digest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except FileNotFoundError:
        raise CorruptDataError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(error, str(path)) from error
