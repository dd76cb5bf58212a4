"""Exactly once: what became of the numbered inserts of each writer.

A writer numbers its inserts. If it missed an acknowledgement, it sends the insert again under its number. The ledger remembers the last numbers of
each writer and the rows that they became. These numbers are a window that moves with the writer's highest one, as the anti-replay window of
RFC 4303, section 3.4.3, does for packets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import xxhash

from tdreplay.errors import InvalidArgumentError, SequenceError
from tdreplay.insert_id import InsertId
from tdreplay.limits import MAX_WRITER_ID, SEQUENCE_WINDOW, check_whole
from tdreplay.memory import Rows
from tdreplay.schema import Schema
from tdreplay_server.durability.generation_id import new_generation_id
from tdreplay_server.durability.levels import NO_DURABILITY
from tdreplay_server.storage.ring import Ring
from tdreplay_server.system.counting import Distribution

__all__ = ["MAX_WRITERS", "AcknowledgedInsert", "InsertKey", "Ledger", "RememberedInsert", "WriterMemory", "WrittenInsert", "digest_of"]

MAX_WRITERS = 4096
"""Writers that a table remembers. Of more it forgets those that were silent longest."""


class AcknowledgedInsert(NamedTuple):
    """What became of a numbered insert, as the journal and checkpoints keep it.

    Attributes:
        writer_id: The writer.
        place: The place of the insert among those that are remembered of its writer: ``sequence % SEQUENCE_WINDOW``.
        sequence: The number of the insert among those of its writer.
        digest: The digest of its rows.
        first_row_id: The id of its first row.
        rows: The number of its rows.
    """

    writer_id: str
    place: int
    sequence: int
    digest: int
    first_row_id: int
    rows: int


class InsertKey(NamedTuple):
    """What the server knows an insert by.

    Attributes:
        insert_id: Its insert id.
        digest: The digest of its rows: other rows of the same insert id are an error.
    """

    insert_id: InsertId
    digest: int

    @classmethod
    def of(cls, writer_id: str, sequence: int, columns: Mapping[str, Rows]) -> InsertKey | None:
        """The key of an insert with these columns; None where it is not numbered.

        Raises:
            InvalidArgumentError: the writer id or the number breaks its rule.
        """
        if not writer_id:
            check_whole(sequence, "sequence of a block without a writer_id", 0, 0)
            return None
        if len(writer_id) > MAX_WRITER_ID or not (writer_id.isascii() and writer_id.isprintable()):
            raise InvalidArgumentError(f"writer_id ({writer_id[:80]!r}) must be 1 to {MAX_WRITER_ID} printable ASCII characters")
        insert_id = InsertId(writer_id, check_whole(sequence, "sequence", 1))
        return cls(insert_id, digest_of({name: (rows,) for name, rows in columns.items()}))


def digest_of(columns: Mapping[str, Sequence[Rows]]) -> int:
    """A 64-bit digest of rows, each field of them in one or more parts. It tells mistakes apart, not attacks (XXH3).

    It is the same in whatever order the fields come, and however they are parted.
    """
    digest = xxhash.xxh3_64()
    for name in sorted(columns):
        for part in columns[name]:
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.intdigest() - (1 << 63)  # Signed, as SQLite's integers are.


@dataclass(frozen=True)
class WrittenInsert:
    """An insert whose rows lie in the storage.

    Attributes:
        first_row_id: The id of its first row.
        rows: The number of its rows.
        key: What it is known by, to be noted with it; None where it is not numbered.
        unflushed_digest: The digest of its rows, without those that it overwrites itself. Recovery compares it with what the disk has after a loss of
            power. None where the durability is not ``interval``: the others need none.
    """

    first_row_id: int
    rows: int
    key: InsertKey | None
    unflushed_digest: int | None = None


@dataclass(frozen=True)
class RememberedInsert:
    """What became of an insert: the rows ``[first_row_id, first_row_id + rows)``."""

    sequence: int
    digest: int
    first_row_id: int
    rows: int


@dataclass
class WriterMemory:
    """The last inserts of one writer.

    Attributes:
        inserts: Place -> the insert that was there last; see `AcknowledgedInsert`.
        highest: The highest sequence number so far.
    """

    inserts: dict[int, RememberedInsert] = field(default_factory=dict)
    highest: int = 0

    def add(self, insert: RememberedInsert) -> None:
        """Remembers an insert. The one whose place it takes is forgotten."""
        self.inserts[insert.sequence % SEQUENCE_WINDOW] = insert
        self.highest = max(self.highest, insert.sequence)


class Ledger:
    """The ledger of one table, in memory. It ends with its process, as the rows do. Its callers keep all other inserts out.

    Attributes:
        durability: What a commit survives.
        retired: The rows below this id are not live after a crash.
        generation_id: As `RowLog.generation_id`.
        commit_seconds: How long what it writes to the disk takes, without the rows. A ledger in memory writes nothing.
        flush_seconds: How long rows take to the disk, which whoever writes them says.
    """

    def __init__(self) -> None:
        self.durability = NO_DURABILITY
        self.retired = 0
        self.generation_id = new_generation_id()
        self.commit_seconds, self.flush_seconds = Distribution(), Distribution()
        self._writers: OrderedDict[str, WriterMemory] = OrderedDict()

    def find(self, key: InsertKey) -> RememberedInsert | None:
        """What became of the insert with that key; None where it is new.

        Raises:
            SequenceError: its number stands for other rows, or is too far below the writer's highest number to tell.
        """
        writer_id, sequence = key.insert_id
        writer = self._writers.get(writer_id) or self._remembered(writer_id)
        found = writer.inserts.get(sequence % SEQUENCE_WINDOW)
        if found is not None and found.sequence == sequence:
            if found.digest != key.digest:
                raise SequenceError(f"sequence {sequence} of writer {writer_id!r} stands for other rows, stored as {found.first_row_id} on")
            return found
        if sequence <= writer.highest - SEQUENCE_WINDOW:
            raise SequenceError(
                f"sequence {sequence} of writer {writer_id!r} must be above {writer.highest - SEQUENCE_WINDOW}: "
                f"its highest is {writer.highest}, and {SEQUENCE_WINDOW} are remembered"
            )
        return None

    def retire(self, oldest: int) -> None:
        """Takes the rows below `oldest` out of the window: they may be overwritten when this returns.

        Raises:
            ResourceExhaustedError: the disk is full. Nothing changed.
            StorageError: the disk failed.
        """
        self.retired = oldest

    def commit(self, ring: Ring, inserts: Sequence[WrittenInsert]) -> None:
        """Takes the rows of `inserts`, up to the write count of `ring`, into the window: all of them or none.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed. None of the rows is in the window.
        """
        for insert in inserts:
            if insert.key is not None:
                (writer_id, sequence), digest = insert.key
                self._note(writer_id, RememberedInsert(sequence, digest, insert.first_row_id, insert.rows))
        self.retired = max(self.retired, ring.oldest)

    def flushed(self, write_count: int, oldest: int) -> None:
        """Notes, on the disk, that the rows below `write_count` are there, and takes those below `oldest` out of the window.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        self.retired = oldest

    def restart(self, ring: Ring, generation: int, schema: Schema | None, generation_id: str | None = None) -> None:
        """Notes, on the disk, another window, and where its rows lie: after a reset, a rewind or the table's first rows.

        Args:
            ring: The live rows.
            generation: The number of the directory with the rows.
            schema: The schema of the rows.
            generation_id: The new one; None: row ids stand for the same rows as before.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed. Nothing changed.
        """
        self.retired = ring.oldest
        self.generation_id = generation_id or self.generation_id

    def acknowledged(self) -> list[AcknowledgedInsert]:
        """What became of the numbered inserts that are remembered, for a checkpoint."""
        return [
            AcknowledgedInsert(writer_id, place, insert.sequence, insert.digest, insert.first_row_id, insert.rows)
            for writer_id, writer in self._writers.items()
            for place, insert in writer.inserts.items()
        ]

    def close(self, ring: Ring) -> None:
        """Notes that the table was closed with these live rows."""

    def abandon(self) -> None:
        """Ends the ledger of a table that is being removed."""

    def _note(self, writer_id: str, insert: RememberedInsert) -> None:
        """Remembers an insert that was stored. Nothing else makes a writer known, or keeps it from being forgotten."""
        writer = self._writers.get(writer_id)
        if writer is None:
            writer = self._writers[writer_id] = self._remembered(writer_id)
            if len(self._writers) > MAX_WRITERS:
                self._writers.popitem(last=False)
        writer.add(insert)
        self._writers.move_to_end(writer_id)

    def _remembered(self, writer_id: str) -> WriterMemory:
        """What is known of a writer that is not in memory."""
        return WriterMemory()
