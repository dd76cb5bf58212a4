"""Writer ids, and the insert ids that are made of them."""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque

from tdreplay.insert_id import InsertId
from tdreplay.limits import SEQUENCE_WINDOW

__all__ = ["MAX_UNACKNOWLEDGED", "InsertIds", "WriterIds"]

MAX_UNACKNOWLEDGED = SEQUENCE_WINDOW // 2
"""The most blocks of one writer id that may wait for their acknowledgement. The server remembers twice as many."""


class InsertIds:
    """A writer id, and the insert ids made of it. Used by one insert or one writer at a time.

    Args:
        writer_id: one that was used before, maybe by another process that is gone. '': one that nobody else has.

    Attributes:
        is_named: whether somebody gave it.
    """

    def __init__(self, writer_id: str = "") -> None:
        self.is_named = bool(writer_id)
        self._writer_id = writer_id or uuid.uuid4().hex
        # Whoever had the name before began at an earlier time, and sent less than a block a microsecond.
        self._sequences = itertools.count(time.time_ns() // 1000 if writer_id else 1)

    def next(self) -> InsertId:
        """An insert id that was not used yet."""
        return InsertId(self._writer_id, next(self._sequences))


class WriterIds:
    """The writer ids of one buffer that nobody uses.

    One whose blocks may or may not be stored never comes back: the server must still remember these blocks when they are sent again.
    """

    def __init__(self) -> None:
        self._free: deque[InsertIds] = deque()  # Single operations of a deque are safe in threads.

    def take(self, writer_id: str = "") -> InsertIds:
        """A writer id that nobody uses: the given one, where there is one."""
        if writer_id:
            return InsertIds(writer_id)
        try:
            return self._free.pop()
        except IndexError:
            return InsertIds()

    def give_back(self, insert_ids: InsertIds) -> None:
        """Makes a writer id free, all of whose blocks were acknowledged or refused. One that was given belongs to whoever gave it."""
        if not insert_ids.is_named:
            self._free.append(insert_ids)
