"""Exactly once: what became of the numbered blocks of each writer.

A writer numbers its blocks, and sends a block whose acknowledgement it missed again under its number. Of a window of numbers that moves with the
writer's highest one (as the anti-replay window of RFC 4303, section 3.4.3, does for packets) the ledger knows the rows that each block became.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import xxhash

from tdreplay.errors import InvalidArgumentError, SequenceError
from tdreplay.limits import MAX_WRITER_ID, SEQUENCE_WINDOW, check_whole
from tdreplay.memory import Rows
from tdreplay.schema import Schema
from tdreplay_server.durability.levels import NO_DURABILITY
from tdreplay_server.storage.ring import Ring

__all__ = ["MAX_WRITERS", "Acknowledged", "Entry", "Ledger", "Number", "Window", "Written", "digest_of"]

Acknowledged: TypeAlias = "tuple[str, int, int, int, int, int]"
"""A numbered block: writer id, place in the window, sequence, digest, first row id, rows."""

MAX_WRITERS = 4096
"""Writers that a table remembers; of more, those that were silent longest are forgotten."""


@dataclass(frozen=True)
class Number:
    """What a block is known by.

    Attributes:
        writer_id: of its writer.
        sequence: its number among those of the writer.
        digest: of its rows.
    """

    writer_id: str
    sequence: int
    digest: int

    @classmethod
    def of(cls, writer_id: str, sequence: int, columns: Mapping[str, Rows]) -> Number | None:
        """The number of a block with these columns; None where it has none.

        Raises:
            InvalidArgumentError: the writer id or the number breaks its rule.
        """
        if not writer_id:
            check_whole(sequence, "sequence of a block without a writer_id", 0, 0)
            return None
        if len(writer_id) > MAX_WRITER_ID or not (writer_id.isascii() and writer_id.isprintable()):
            raise InvalidArgumentError(f"writer_id ({writer_id[:80]!r}) must be 1 to {MAX_WRITER_ID} printable ASCII characters")
        return cls(writer_id, check_whole(sequence, "sequence", 1), digest_of({name: (rows,) for name, rows in columns.items()}))


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
class Written:
    """A block whose rows lie in the storage.

    Attributes:
        first_row_id: the id of its first row.
        rows: that it has.
        number: what it is known by, which is noted with it; None where it has no number.
        digest: of those of its rows that stay, where they are not flushed to the disk yet.
    """

    first_row_id: int
    rows: int
    number: Number | None
    digest: int | None = None


@dataclass(frozen=True)
class Entry:
    """What became of a block: the rows ``[first_row_id, first_row_id + rows)``."""

    sequence: int
    digest: int
    first_row_id: int
    rows: int


@dataclass
class Window:
    """The blocks of one writer, by their number's place in the window."""

    entries: dict[int, Entry] = field(default_factory=dict)
    highest: int = 0

    def add(self, entry: Entry) -> None:
        """Takes a block in; the one whose place it has is too old to be known any more."""
        self.entries[entry.sequence % SEQUENCE_WINDOW] = entry
        self.highest = max(self.highest, entry.sequence)


class Ledger:
    """The ledger of one table, in memory: it ends with its process, as the rows do that it speaks of. Its callers hold the table's lock, alone.

    Attributes:
        durability: what a commit survives.
        retired: rows below this id are not live after a crash.
    """

    def __init__(self) -> None:
        self.durability = NO_DURABILITY
        self.retired = 0
        self._windows: OrderedDict[str, Window] = OrderedDict()

    def find(self, number: Number) -> Entry | None:
        """What became of the block with that number; None where it is new.

        Raises:
            SequenceError: the number stands for other rows, or is too far below the writer's highest to tell.
        """
        window = self._windows.get(number.writer_id) or self._remembered(number.writer_id)
        entry = window.entries.get(number.sequence % SEQUENCE_WINDOW)
        if entry is not None and entry.sequence == number.sequence:
            if entry.digest != number.digest:
                raise SequenceError(
                    f"sequence {number.sequence} of writer {number.writer_id!r} stands for other rows, stored as {entry.first_row_id} on"
                )
            return entry
        if number.sequence <= window.highest - SEQUENCE_WINDOW:
            raise SequenceError(
                f"sequence {number.sequence} of writer {number.writer_id!r} must be above {window.highest - SEQUENCE_WINDOW}: "
                f"its highest is {window.highest}, and {SEQUENCE_WINDOW} are remembered"
            )
        return None

    def retire(self, oldest: int) -> None:
        """Takes the rows below `oldest` out of the window: they may be overwritten when this returns.

        Raises:
            ResourceExhaustedError: the disk is full. Nothing changed.
            StorageError: the disk failed.
        """
        self.retired = oldest

    def commit(self, ring: Ring, blocks: Sequence[Written]) -> None:
        """Takes the rows up to the write count of `ring`, which are those of `blocks`, into the window, together.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed. None of the rows is in the window.
        """
        for block in blocks:
            if block.number is not None:
                self._note(block.number.writer_id, Entry(block.number.sequence, block.number.digest, block.first_row_id, block.rows))
        self.retired = max(self.retired, ring.oldest)

    def flushed(self, write_count: int, oldest: int) -> None:
        """Notes, on the disk, that the rows below `write_count` are there, and takes those below `oldest` out of the window.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        self.retired = oldest

    def restart(self, ring: Ring, generation: int, schema: Schema | None) -> None:
        """Notes, on the disk, another window, and where its rows lie: after a reset, a rewind or the table's first rows.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed. Nothing changed.
        """
        self.retired = ring.oldest

    def acknowledged(self) -> list[Acknowledged]:
        """All that is known of numbered blocks, for a checkpoint."""
        return [
            (writer, slot, entry.sequence, entry.digest, entry.first_row_id, entry.rows)
            for writer, window in self._windows.items()
            for slot, entry in window.entries.items()
        ]

    def close(self, ring: Ring) -> None:
        """Notes that the table was closed with these live rows."""

    def abandon(self) -> None:
        """Ends the ledger of a table that is being removed."""

    def _note(self, writer_id: str, entry: Entry) -> None:
        """Takes in a block that was stored. Nothing else makes a writer known, or keeps it from being forgotten."""
        window = self._windows.get(writer_id)
        if window is None:
            window = self._windows[writer_id] = self._remembered(writer_id)
            if len(self._windows) > MAX_WRITERS:
                self._windows.popitem(last=False)
        window.add(entry)
        self._windows.move_to_end(writer_id)

    def _remembered(self, writer_id: str) -> Window:
        """The window of a writer that is not in memory."""
        return Window()
