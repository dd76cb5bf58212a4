"""Inserts that survive: the rows and what makes them meaningful, in an order in which nothing that breaks in between does harm."""

from __future__ import annotations

from tdreplay.schema import Schema
from tdreplay_server.failpoints import failpoint
from tdreplay_server.flusher import Flusher
from tdreplay_server.ledger import Ledger, Number
from tdreplay_server.recovery import digest_of_rows
from tdreplay_server.snapshot import Snapshot
from tdreplay_server.storage import Inserts
from tdreplay_server.torchrl_parts import RingWriter

__all__ = ["DurableWriter"]


class DurableWriter(RingWriter):
    """Writes blocks of rows into a `RowStorage`, and into the ledger what they are. Its callers hold the table's lock, alone.

    Attributes:
        snapshot: that is being taken of the rows, or None: it gets rows before they are overwritten.

    Args:
        ledger: of the table.
        flusher: where rows are flushed to the disk now and then.
    """

    def __init__(self, ledger: Ledger, flusher: Flusher | None) -> None:
        super().__init__()
        self._ledger, self._flusher = ledger, flusher
        self.snapshot: Snapshot | None = None

    def insert(self, columns: Inserts, schema: Schema, rows: int, number: Number | None) -> None:
        """Writes rows. When it returns they are in the ring, and survive what the ledger's durability says.

        Where it raises, the ring has none of them; it may have lost rows that they were to overwrite.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        storage, ledger, before = self._storage, self._ledger, self._storage.ring
        retired, after = before.retire(rows), before.commit(rows)
        if retired.oldest > before.oldest:
            self._retire(retired.oldest, rows)
        failpoint("insert-after-intent")
        storage.ring = retired
        self.put(columns, rows)
        failpoint("insert-after-rows")
        if ledger.durability.level == "power":
            storage.sync()
        digest = self._unflushed_digest(schema, before.write_count, rows) if ledger.durability.level == "interval" else None
        ledger.commit(after, before.write_count, rows, number, digest)
        storage.ring = after
        failpoint("insert-after-commit")

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
        kept = min(rows, self._storage.max_size)
        return digest_of_rows(self._storage, schema, first + rows - kept, kept)

    def note_flushed(self, written: int, rows: int = 0) -> None:
        """Notes that the rows below `written` are on the disk, and makes room for those that may come until the next flush, `rows` at the least."""
        if self._flusher is not None:
            ahead = self._flusher.ahead(self._storage.ring, written, rows)
            self._ledger.flushed(written, max(self._ledger.retired, ahead))
