"""Who hears of it when rows of a table become live, or are not live any more."""

from __future__ import annotations

from typing import Protocol

from tdreplay_server.storage.ring import Ring

__all__ = ["RowListener", "Told", "Unheard", "Watcher"]


class RowListener(Protocol):
    """Hears of the rows of one table, in order. Each call comes while the table's lock is held alone, so nobody draws or reads meanwhile.

    - When a table is opened, `inserted` comes first, for the rows that its directory holds.
    - A reset evicts all rows.
    - A rewind evicts the rows that are not live after it: the oldest, the newest, or both. Later rows get the ids of the newest ones again.
    - An insert that fails evicts the rows that it was about to overwrite.
    - After an interrupt (Ctrl-C) some ids may come a second time.
    """

    def inserted(self, ids: range) -> None:
        """The rows of these ids are live from now on."""

    def evicted(self, ids: range) -> None:
        """The rows of these ids are not live any more."""


class Unheard:
    """A listener for rows that nobody draws."""

    def inserted(self, ids: range) -> None:
        """Nothing to note."""

    def evicted(self, ids: range) -> None:
        """Nothing to forget."""


class Watcher(Protocol):
    """Has to see rows before they are overwritten."""

    def save_until(self, row_id: int) -> None:
        """The rows below this id may be overwritten when this returns. Only one thread at a time calls it."""


class Told:
    """Tells a listener how the live rows changed since it was told the last time.

    It compares where the ring is with what it told. So an interrupt on the way to here loses nothing: the next call tells that change as well.
    """

    def __init__(self, listener: RowListener) -> None:
        self._listener = listener
        self._oldest = self._end = 0

    def tell(self, ring: Ring) -> None:
        """Tells of the live rows of `ring`, where they are others than before."""
        oldest, end = self._oldest, self._end
        if oldest < end:
            if ring.oldest > oldest:
                self._listener.evicted(range(oldest, min(ring.oldest, end)))
            if ring.write_count < end:
                self._listener.evicted(range(max(ring.write_count, oldest), end))
        if ring.write_count > max(ring.oldest, end):
            self._listener.inserted(range(max(ring.oldest, end), ring.write_count))
        self._oldest, self._end = ring.oldest, ring.write_count
