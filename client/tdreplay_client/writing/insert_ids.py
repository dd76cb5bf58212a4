"""Who inserts: writer ids, and the numbers under which their blocks go out, so that each block is stored once however often it is sent."""

from __future__ import annotations

import itertools
import uuid
from collections import deque

from tdreplay.insert_id import InsertId
from tdreplay.limits import SEQUENCE_WINDOW

__all__ = ["MOST_UNACKNOWLEDGED", "InsertIds", "WriterIds"]

MOST_UNACKNOWLEDGED = SEQUENCE_WINDOW // 2
"""Blocks of one writer id that may wait for their acknowledgement at once: well within what the server remembers."""


class InsertIds:
    """A writer id that nobody else has, and the insert ids made of it. Used by one insert or one writer at a time."""

    def __init__(self) -> None:
        self._writer_id = uuid.uuid4().hex
        self._sequences = itertools.count(1)

    def next(self) -> InsertId:
        """An insert id that was not used yet."""
        return InsertId(self._writer_id, next(self._sequences))


class WriterIds:
    """The writer_ids of one buffer that are free. One whose blocks may or may not be stored never comes back: its numbers must stay in reach."""

    def __init__(self) -> None:
        self._free: deque[InsertIds] = deque()  # Single operations of a deque are safe in threads.

    def take(self) -> InsertIds:
        """An insert_ids that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return InsertIds()

    def give_back(self, insert_ids: InsertIds) -> None:
        """Makes an insert_ids free. All its blocks are acknowledged, or were refused."""
        self._free.append(insert_ids)
