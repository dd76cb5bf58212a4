"""Rows on their way to be stored, and which of them are stored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tdreplay.errors import InternalError, ReplayError
from tdreplay.schema import Schema
from tdreplay_server.durability.ledger import InsertKey
from tdreplay_server.storage.rows import Inserts

__all__ = ["Insert", "Priorities", "joins"]

Priorities = npt.NDArray[np.float64]
"""Raw priorities of rows: shape [n], finite, from 0 up."""

MOST_INSERTS, MOST_BYTES = 32, 4 << 20
"""Inserts of one group, and bytes of their rows."""
INSERTS_BESIDE_READERS = 4
"""Inserts of one group while readers want the rows too: they have their turn after each group. With 4, learners keep twice as much beside 64
writers as with 16, and the writers store three quarters as much. ``make bench-contention`` measures it."""


@dataclass(eq=False)
class Insert:
    """Rows to be stored, and what became of them.

    Attributes:
        columns: Field name -> the field's values in all rows, as a tensor, or as rows of bytes where it has bytes.
        schema: The schema of the rows.
        rows: The number of rows.
        key: What the insert is known by; None where it is not numbered.
        priorities: The priorities that the writer gave; None where it gave none.
        first_row_id: The id of the first row, once it is stored; -1 before.
        already_stored: Whether the rows had been stored before.
        error: Why they are not stored.
    """

    columns: Inserts
    schema: Schema
    rows: int
    key: InsertKey | None = None
    priorities: Priorities | None = None
    first_row_id: int = -1
    already_stored: bool = False
    error: BaseException | None = None

    def stored(self, first_row_id: int, *, before: bool = False) -> None:
        """Notes that it is stored."""
        self.first_row_id, self.already_stored = first_row_id, before

    def failed(self, error: BaseException) -> None:
        """Notes the error that ended the group, unless it is known already what became of this insert."""
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

    Two inserts of one writer may not: they may be the same one, sent twice. `readers`: whether there are any that want the rows now.
    """
    size = sum(member.rows * member.schema.row_bytes for member in group) + insert.rows * insert.schema.row_bytes
    writers = {member.key.insert_id.writer_id for member in group if member.key is not None}
    known = insert.key is not None and insert.key.insert_id.writer_id in writers
    return len(group) < (INSERTS_BESIDE_READERS if readers else MOST_INSERTS) and size <= MOST_BYTES and not known
