"""Who inserts: writer ids, and the numbers under which their blocks go out, so that each block is stored once however often it is sent."""

from __future__ import annotations

import itertools
import uuid
from collections import deque

from tdreplay.insert_id import InsertId
from tdreplay.limits import SEQUENCE_WINDOW

__all__ = ["MOST_UNACKNOWLEDGED", "Identities", "Identity"]

MOST_UNACKNOWLEDGED = SEQUENCE_WINDOW // 2
"""Blocks of one writer id that may wait for their acknowledgement at once: well within what the server remembers."""


class Identity:
    """A writer id that nobody else has, and the insert ids made of it. Used by one insert or one writer at a time."""

    def __init__(self) -> None:
        self._writer_id = uuid.uuid4().hex
        self._sequences = itertools.count(1)

    def next(self) -> InsertId:
        """An insert id that was not used yet."""
        return InsertId(self._writer_id, next(self._sequences))


class Identities:
    """The identities of one buffer that are free. One whose blocks may or may not be stored never comes back: its numbers must stay in reach."""

    def __init__(self) -> None:
        self._free: deque[Identity] = deque()  # Single operations of a deque are safe in threads.

    def take(self) -> Identity:
        """An identity that nobody uses."""
        try:
            return self._free.pop()
        except IndexError:
            return Identity()

    def give_back(self, identity: Identity) -> None:
        """Makes an identity free. All its blocks are acknowledged, or were refused."""
        self._free.append(identity)
