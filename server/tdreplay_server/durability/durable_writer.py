"""Inserts that survive: the rows and what makes them meaningful, in an order in which nothing that breaks in between does harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tdreplay.errors import InternalError, ReplayError
from tdreplay.schema import Schema
from tdreplay_server.checkpoints.snapshot import Snapshot
from tdreplay_server.durability.flusher import Flusher
from tdreplay_server.durability.ledger import Ledger, Number, Written
from tdreplay_server.durability.recovery import digest_of_rows
from tdreplay_server.storage.rows import Inserts, RowStorage
from tdreplay_server.system.failpoints import failpoint

__all__ = ["DurableWriter", "Insert", "joins"]

MOST_INSERTS, MOST_BYTES = 32, 4 << 20
"""Inserts of one group, and bytes of their rows."""
INSERTS_BESIDE_READERS = 4
"""Inserts of one group while readers want the rows too: they have their turn after each group. With 4, learners keep twice as much beside 64
writers as with 16, and the writers store three quarters as much. ``make bench-contention`` measures it."""


@dataclass(eq=False)
class Insert:
    """A block of rows to be stored, and what became of it.

    Attributes:
        columns: field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
        schema: of the rows.
        rows: how many they are.
        number: what the block is known by; None where it has no number.
        first_row_id: the id of its first row, once it is stored.
        already_stored: whether it had been stored before.
        error: why it is not stored.
    """

    columns: Inserts
    schema: Schema
    rows: int
    number: Number | None
    first_row_id: int = -1
    already_stored: bool = False
    error: BaseException | None = None

    def stored(self, first_row_id: int, *, before: bool = False) -> None:
        """Notes that it is stored."""
        self.first_row_id, self.already_stored = first_row_id, before

    def failed(self, error: BaseException) -> None:
        """Notes the error that ended the group, unless it is known already what became of this block."""
        if isinstance(error, Exception) and self.first_row_id < 0 and self.error is None:
            # An error of its own: a traceback holds all that its thread's frames hold.
            self.error = type(error)(str(error)) if isinstance(error, ReplayError) else error

    @property
    def outcome(self) -> tuple[int, bool]:
        """The id of its first row, and whether it had been stored before; or its error is raised."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # Its traceback holds this object, and with it the rows: it must not be held by this object as well.
        if self.first_row_id < 0:
            raise InternalError("the thread that stored this block for others was interrupted")
        return self.first_row_id, self.already_stored


def joins(group: Sequence[Insert], insert: Insert, *, readers: bool) -> bool:
    """Whether an insert may be stored together with a group.

    Two blocks of a writer are not: they may be the same one, sent twice. `readers`: whether there are any that want the rows now.
    """
    size = sum(member.rows * member.schema.row_bytes for member in group) + insert.rows * insert.schema.row_bytes
    writers = {member.number.writer_id for member in group if member.number is not None}
    known = insert.number is not None and insert.number.writer_id in writers
    return len(group) < (INSERTS_BESIDE_READERS if readers else MOST_INSERTS) and size <= MOST_BYTES and not known


class DurableWriter:
    """Writes blocks of rows into a `RowStorage`, and into the ledger what they are. One thread at a time uses it.

    Attributes:
        snapshot: that is being taken of the rows, or None: it gets rows before they are overwritten.

    Args:
        storage: of the rows.
        ledger: of the table.
        flusher: where rows are flushed to the disk now and then.
        alone: keeps readers out, while rows are overwritten.
        torn: called with readers kept out, where slots may hold neither their old rows nor whole new ones.
    """

    def __init__(
        self,
        storage: RowStorage,
        ledger: Ledger,
        flusher: Flusher | None,
        alone: AbstractContextManager[object],
        torn: Callable[[], None],
    ) -> None:
        self._storage, self._ledger, self._flusher, self._alone, self._torn = storage, ledger, flusher, alone, torn
        self.snapshot: Snapshot | None = None

    def insert(self, blocks: Sequence[Insert]) -> None:
        """Writes blocks, one after the other. When it returns they are in the ring, and survive what the ledger's durability says.

        Where it raises, the ring has none of them; it may have lost rows that they were to overwrite.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        storage, before = self._storage, self._storage.ring
        rows = sum(block.rows for block in blocks)
        retired, after = before.retire(rows), before.commit(rows)
        if retired.oldest > before.oldest:
            self._retire(retired.oldest, rows)
        failpoint("insert-after-intent")
        with self._alone:
            try:
                storage.ring = retired
                self._ledger.commit(after, self._put_all(blocks, before.write_count))
                storage.ring = after
            except BaseException:
                if storage.ring != before:
                    self._torn()
                raise
        failpoint("insert-after-commit")

    def _put_all(self, blocks: Sequence[Insert], row_id: int) -> list[Written]:
        """Copies blocks to their slots, the first one's rows from `row_id` on."""
        level, written = self._ledger.durability.level, []
        for block in blocks:
            self._storage.write(row_id, block.rows, block.columns)
            digest = self._unflushed_digest(block.schema, row_id, block.rows) if level == "interval" else None
            written.append(Written(row_id, block.rows, block.number, digest))
            row_id += block.rows
        failpoint("insert-after-rows")
        if level == "power":
            self._storage.sync()
        return written

    def _retire(self, oldest: int, rows: int) -> None:
        """Sees to it that the rows below `oldest` may be overwritten."""
        failpoint("insert-before-intent")
        if self.snapshot is not None:
            self.snapshot.save_until(oldest)
        if self._flusher is None:
            self._ledger.retire(oldest)
        elif oldest > self._ledger.retired:
            self._storage.sync()
            self.note_flushed(self._storage.ring.write_count, rows)

    def _unflushed_digest(self, schema: Schema, first: int, rows: int) -> int:
        """The digest of those rows of an insert that stay."""
        kept = min(rows, self._storage.buffer_size)
        return digest_of_rows(self._storage, schema, first + rows - kept, kept)

    def note_flushed(self, written: int, rows: int = 0) -> None:
        """Notes that the rows below `written` are on the disk, and makes room for those that may come until the next flush, `rows` at the least."""
        if self._flusher is not None:
            ahead = self._flusher.ahead(self._storage.ring, written, rows)
            self._ledger.flushed(written, max(self._ledger.retired, ahead))
