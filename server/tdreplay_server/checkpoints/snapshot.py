"""The rows of one moment, copied while others go on writing.

The copy goes by ascending row ids. An insert overwrites the rows with the lowest ids. So the insert first saves those of them that the copy has not
reached. Neither waits for the other for longer than that takes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from tdreplay.api import Progress
from tdreplay.fields import Field
from tdreplay_server.durability.row_log import RowLog
from tdreplay_server.system.disk import write_at
from tdreplay_server.system.failpoints import failpoint
from tdreplay_server.system.private_files import open_file

__all__ = ["Snapshot", "rows_file", "snapshotted", "state_rows_file"]

STEP_BYTES = 4 << 20
"""Bytes that are copied before others may write again. That takes 1 to 3 ms."""


@contextmanager
def snapshotted(row_log: RowLog, directory: Path) -> Iterator[Snapshot]:
    """A snapshot of the rows as they are now, into that directory."""
    # Its files are closed after the last insert that may write to them.
    with ExitStack() as opened, row_log.watched(lambda: opened.enter_context(closing(Snapshot(row_log, directory)))) as snapshot:
        yield snapshot


def rows_file(number: int) -> str:
    """The name of the file with the rows of a schema's field of that number."""
    return f"field_{number:03d}.rows"


def state_rows_file(name: str) -> str:
    """The name of the file with a column of what is kept beside the rows."""
    return f"state_{name}.rows"


class Snapshot:
    """The live rows as they are now, on their way into files: one file for each field, row after row by ascending id.

    It is made while nobody writes to the table. An insert calls `save_until` before it overwrites rows.

    Attributes:
        config: What the table is fixed by.
        ring: The live rows.
        schema: The schema of the rows; None where there are none.
        acknowledged: What became of the numbered inserts.
        state: What is kept beside the rows; None where there are none.

    Args:
        row_log: The rows.
        directory: The directory for the files.
    """

    def __init__(self, row_log: RowLog, directory: Path) -> None:
        self.config, self.ring, self.schema, self.acknowledged = row_log.config, row_log.ring, row_log.schema, row_log.acknowledged()
        self._storage, self._reading = row_log.storage, partial(row_log.reading, row_log.version)
        self.state = None if row_log.slot_state is None else row_log.slot_state.copy(self.ring)
        schema = self.schema
        self._next = self.ring.oldest
        self._row_bytes = schema.row_bytes if schema else 0
        self._files: list[tuple[Field, int]] = []
        self._error: OSError | None = None
        self._saving, self._first_in_line = threading.Lock(), threading.Lock()
        try:
            for number, field in enumerate(schema.stored_fields if schema else ()):
                self._files.append((field, open_file(directory / rows_file(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)))
        except OSError:
            self.close()
            raise

    def complete(self, progress: Progress | None) -> None:
        """Saves all rows, a few at a time. Returns when that is done.

        Raises:
            TableChangedError: the table was reset, rewound or dropped.
            OSError: the disk is full, or failed, here or in `save_until`.
        """
        total = self.ring.size * self._row_bytes
        while self._error is None and self._next < self.ring.write_count:
            with self._first_in_line:
                pass  # An insert that waits goes first. Without this, the thread here would ask for the lock again before the insert gets it.
            with self._reading():
                self._save_until(self._next + max(1, STEP_BYTES // max(1, self._row_bytes)))
            failpoint("checkpoint-half-written")
            if progress is not None:
                progress((self._next - self.ring.oldest) * self._row_bytes, total)
        if self._error is not None:
            raise self._error

    def save_until(self, row_id: int) -> None:
        """Saves the rows below `row_id`. An error is kept for `complete`, and not raised: the insert that saves rows is not to blame for it."""
        with self._first_in_line:
            self._save_until(row_id)

    def _save_until(self, row_id: int) -> None:
        stop = min(row_id, self.ring.write_count)
        with self._saving:
            try:
                while self._error is None and self._next < stop:
                    self._next = self._save(self._next, stop)
            except OSError as error:
                self._error = error

    def _save(self, first: int, stop: int) -> int:
        """Saves rows from `first` on, as far as they lie one after the other, and gives the id of the next row."""
        slot, count = first % self.ring.buffer_size, min(stop - first, self.ring.buffer_size - first % self.ring.buffer_size)
        for field, file in self._files:
            if field.row_bytes:
                rows = self._storage.rows(slot, slot + count, field.name)
                write_at(file, np.ascontiguousarray(rows).view(np.uint8).data, (first - self.ring.oldest) * field.row_bytes)
        return first + count

    def close(self) -> None:
        """Closes the files. Closing twice is allowed."""
        while self._files:
            os.close(self._files.pop()[1])
