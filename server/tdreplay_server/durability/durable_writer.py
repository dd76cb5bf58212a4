"""Inserts that survive: the rows and what makes them meaningful, in an order in which nothing that breaks in between does harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tdreplay.schema import Schema
from tdreplay_server.durability.flusher import Flusher
from tdreplay_server.durability.insert import Insert
from tdreplay_server.durability.ledger import Ledger, WrittenInsert
from tdreplay_server.durability.recovery import digest_of_rows
from tdreplay_server.durability.row_listeners import Told
from tdreplay_server.durability.slot_state import SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.system.failpoints import failpoint

__all__ = ["DurableWriter"]


class DurableWriter:
    """Writes rows into a storage, and into the ledger what they are. One thread at a time uses it.

    Attributes:
        overwriting: Called with a row id before rows below it are overwritten; None: nobody wants to know.
        state: What is kept beside the rows; None before the first ones.

    Args:
        storage: Where the rows lie.
        ledger: The ledger of the table.
        flusher: What flushes rows to the disk now and then; None: nothing does.
        alone: Keeps readers out while rows are overwritten.
        told: Tells the table's listener what was written and how the ring moved, with readers kept out.
        torn: Called, with readers kept out, when slots may hold neither their old rows nor whole new ones.
    """

    def __init__(
        self,
        storage: RowStorage,
        ledger: Ledger,
        flusher: Flusher | None,
        alone: AbstractContextManager[object],
        told: Told,
        torn: Callable[[], None],
    ) -> None:
        self._storage, self._ledger, self._flusher, self._alone, self._told, self._torn = storage, ledger, flusher, alone, told, torn
        self.overwriting: Callable[[int], None] | None = None
        self.state: SlotState | None = None

    def sync(self) -> None:
        """Returns when all that was written is on the disk.

        Raises:
            StorageError: the disk failed.
        """
        with self._ledger.flush_seconds.timed():
            self._storage.sync()
            if self.state is not None:
                self.state.sync()

    def insert(self, inserts: Sequence[Insert]) -> None:
        """Writes rows, one insert after the other. When it returns they are in the ring, and survive what the ledger's durability says.

        Where it raises, the ring has none of them; it may have lost rows that they were to overwrite.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        storage, before = self._storage, self._storage.ring
        rows = sum(insert.rows for insert in inserts)
        retired, after = before.retire(rows), before.commit(rows)
        self._retire(after.write_count - before.buffer_size, retired.oldest, rows)
        failpoint("insert-after-intent")
        with self._alone:
            try:
                self._move(retired)
                self._ledger.commit(after, self._put_all(inserts, before.write_count))
                self._move(after)
            except BaseException:
                if storage.ring != before:
                    self._torn()
                raise
        failpoint("insert-after-commit")

    def _move(self, ring: Ring) -> None:
        self._storage.ring = ring
        self._told.tell(ring)

    def _put_all(self, inserts: Sequence[Insert], row_id: int) -> list[WrittenInsert]:
        """Copies rows to their slots, the first one's id is `row_id`."""
        level, written = self._ledger.durability.level, []
        for insert in inserts:
            self._storage.write(row_id, insert.rows, insert.columns)
            self._told.listener.written(range(row_id, row_id + insert.rows), insert.priorities)
            digest = self._unflushed_digest(insert.schema, row_id, insert.rows) if level == "interval" else None
            written.append(WrittenInsert(row_id, insert.rows, insert.key, digest))
            row_id += insert.rows
        failpoint("insert-after-rows")
        if level == "power":
            self.sync()
        return written

    def _retire(self, overwritten: int, oldest: int, rows: int) -> None:
        """Sees to it that the rows below `overwritten` may be overwritten: after that the live rows begin with `oldest`.

        Some of them may have left the ring before, in memory alone, because they were drawn often enough.
        """
        if overwritten <= self._storage.ring.oldest and self.overwriting is not None:
            self.overwriting(overwritten)
        if overwritten > min(self._storage.ring.oldest, self._ledger.retired):
            self._retire_noted(oldest, rows)

    def _retire_noted(self, oldest: int, rows: int) -> None:
        failpoint("insert-before-intent")
        if self.overwriting is not None:
            self.overwriting(oldest)
        if self._flusher is None:
            self._ledger.retire(oldest)
        elif oldest > self._ledger.retired:
            self.sync()
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
