"""What a table counts of its own work since it was opened, for whoever watches the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tdreplay_server.system.counting import Ages, Total

__all__ = ["Activity", "Checkpoints"]


class Checkpoints(NamedTuple):
    """The checkpoints of a table.

    Attributes:
        written: How many were written.
        failed: How many could not be written.
        last_seconds: How long the last one took that was written.
        last_time: When it was complete: seconds since 1970; 0: there was none.
    """

    written: int = 0
    failed: int = 0
    last_seconds: float = 0.0
    last_time: float = 0.0


class Activity:
    """What is counted of the work of one table. All methods may be called from several threads.

    Attributes:
        inserted_bytes: The bytes of the rows that were inserted. Whoever adds to them holds the table's lock alone.
        sent_bytes: The bytes of the blocks of rows that were made for clients, whichever way these took.
        sampled_ages: The ages of rows of random batches, when they were drawn.
        updated_ages: The ages of rows whose priorities were updated.
        epochs: How often somebody began to read epochs, or went on.
        checkpoints: The checkpoints.
    """

    def __init__(self) -> None:
        self.inserted_bytes = 0
        self.sent_bytes, self.epochs = Total(), Total()
        self.sampled_ages, self.updated_ages = Ages(), Ages()
        self.checkpoints = Checkpoints()

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """For ``with``: a checkpoint is written. A table writes one at a time."""
        began, before = time.monotonic(), self.checkpoints
        try:
            yield
        except BaseException:
            self.checkpoints = before._replace(failed=before.failed + 1)
            raise
        self.checkpoints = before._replace(written=before.written + 1, last_seconds=time.monotonic() - began, last_time=time.time())
