"""The rows of a table from one reset to the next: where they lie, and what they look like."""

from __future__ import annotations

from tdreplay.block import check_header
from tdreplay.errors import ResourceExhaustedError
from tdreplay.schema import Schema
from tdreplay_server.durability.durable_writer import DurableWriter
from tdreplay_server.durability.insert import Insert
from tdreplay_server.durability.journal import Journal
from tdreplay_server.durability.ledger import Ledger
from tdreplay_server.durability.recovery import trusted
from tdreplay_server.durability.row_listeners import RowListener
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.durability.table_directory import TableDirectory, rows_directory
from tdreplay_server.storage.rows import RowStorage
from tdreplay_server.system.failpoints import failpoint

__all__ = ["Generation"]


class Generation:
    """The rows of one generation. Its callers hold the table's lock, or keep all inserts out.

    Attributes:
        number: The number of the generation, from 1; its rows lie in the directory of this number.
        storage: Where the rows lie.
        schema: The schema of the rows; None before the first ones.
        writer: What writes rows into the storage.

    Args:
        ledger: The ledger of the table.
        listener: Hears of the rows, and has a state of its own beside them.
        directory: The directory of the table; None: it has none.
    """

    def __init__(
        self,
        number: int,
        storage: RowStorage,
        writer: DurableWriter,
        ledger: Ledger,
        listener: RowListener,
        directory: TableDirectory | None,
    ) -> None:
        self.number, self.storage, self.writer = number, storage, writer
        self.schema: Schema | None = None
        self._ledger, self._listener, self._directory = ledger, listener, directory
        self._allocating = False

    def recover(self, journal: Journal) -> None:
        """Takes up the rows that the last server left, if there are any: those that are whole.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed.
        """
        schema, storage = journal.state.settings.schema, self.storage
        if schema is None:
            return
        storage.open_columns(schema)
        self._open_state(is_new=False)
        self.schema = schema
        storage.ring = trusted(journal.state.ring, journal.state.unflushed, storage, schema)
        if journal.state.rebooted and journal.state.unflushed:  # The digests are of the rows alone.
            self._listener.lost(range(max(storage.ring.oldest, journal.state.unflushed[0][0]), storage.ring.write_count))
        if journal.durability.reaches_disk:
            self.writer.sync()  # The last server may have had another level.
        if journal.state.unflushed:
            journal.forget_from(storage.ring)

    @property
    def _kept(self) -> Kept:
        return self._listener.kept if self._directory is None else self._directory.journal.kept

    def _open_state(self, *, is_new: bool) -> None:
        """Opens what is kept beside the rows, and gives it to the listener, which hears of the rows after that."""
        storage = self.storage
        directory = None if self._directory is None else rows_directory(self._directory.path, self.number)
        self.writer.state = state = SlotState(self._kept, storage.buffer_size, directory, is_new=is_new)
        self._listener.opened(state, storage.ring)

    def fit(self, schema: Schema) -> None:
        """Checks rows against the schema; the first ones fix it, and take the space for all rows.

        Raises:
            SchemaError, CodecError: the rows differ from those before them, or cannot be sent.
            ResourceExhaustedError, StorageError: there is no space, or the disk failed.
        """
        if self.schema is None:
            check_header(schema)
            self._allocate(schema)
        else:
            self.schema.check(schema)

    def _allocate(self, schema: Schema) -> None:
        if self._allocating:  # That was interrupted, and has left files.
            self.storage.discard()
        self._allocating = True
        self.storage.allocate(schema)
        try:
            self._open_state(is_new=True)
            if self._directory is not None:
                self._directory.settle(self.number)
            failpoint("allocate-before-schema")
            self._ledger.restart(self.storage.ring, self.number, schema)
        except ResourceExhaustedError:
            self.storage.discard()
            raise
        self.schema, self._allocating = schema, False

    def write(self, inserts: list[Insert]) -> None:
        """Stores rows that fit, and notes in each insert where.

        Raises:
            ResourceExhaustedError, StorageError: the disk is full, or failed. None of the rows is stored.
        """
        row_id = self.storage.ring.write_count
        self.writer.insert(inserts)
        for insert in inserts:
            insert.stored(row_id)
            row_id += insert.rows
