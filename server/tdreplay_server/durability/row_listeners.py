"""Who hears of it when rows of a table become live, or are not live any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tdreplay_server.durability.insert import Insert, Priorities
from tdreplay_server.durability.slot_state import NOTHING_KEPT, Kept, SlotState
from tdreplay_server.storage.ring import Ring

__all__ = ["RowListener", "Told", "Unheard", "Watcher"]


class RowListener(Protocol):
    """Hears of the rows of one table, in order. Each call comes while the table's lock is held alone, so nobody draws or reads meanwhile.

    - `opened` comes before the first rows of a generation, and when a table is opened that holds rows. Then `inserted` follows for them.
    - A reset evicts all rows. Then `emptied` comes.
    - A rewind evicts the rows that are not live after it: the oldest, the newest, or both. Later rows get the ids of the newest ones again.
    - An insert that fails evicts the rows that it was about to overwrite.
    - After an interrupt (Ctrl-C) some ids may come a second time.
    """

    @property
    def kept(self) -> Kept:
        """What is to be kept for this listener. It never changes."""

    def opened(self, state: SlotState, ring: Ring) -> None:
        """From now on this is the state of the table, whose ring has these live rows."""

    def emptied(self, ring: Ring) -> None:
        """All rows are gone, and the capacity may be another one. The next rows belong to another generation."""

    def check(self, insert: Insert, before: Sequence[Insert]) -> None:
        """Passes where rows may be inserted after those `before`, which are stored together with them. This comes without the lock.

        Raises:
            ReplayError: they may not. They are not stored.
        """

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """The rows of these ids lie in their slots, and are about to be committed. If they are more than the slots, the last ones stay.

        What is written into the state here, of these slots alone, is of one moment with the rows. `priorities`: what the writer gave.
        """

    def lost(self, ids: range) -> None:
        """What was kept of the rows of these ids may not have reached the disk before a loss of power, though the rows did: it begins anew.

        It comes between `opened` and `inserted`.
        """

    def inserted(self, ids: range) -> None:
        """The rows of these ids are live from now on."""

    def evicted(self, ids: range) -> None:
        """The rows of these ids are not live any more."""

    def closed(self) -> None:
        """The table is at its end. Its state must not be touched any more, so that the memory and the space on the disk are free again."""


class Unheard:
    """A listener for rows that nobody draws."""

    kept = NOTHING_KEPT

    def opened(self, state: SlotState, ring: Ring) -> None:
        """Nothing to note."""

    def emptied(self, ring: Ring) -> None:
        """Nothing to forget."""

    def check(self, insert: Insert, before: Sequence[Insert]) -> None:
        """All rows may be inserted."""

    def written(self, ids: range, priorities: Priorities | None) -> None:
        """Nothing to note."""

    def lost(self, ids: range) -> None:
        """Nothing to note."""

    def inserted(self, ids: range) -> None:
        """Nothing to note."""

    def evicted(self, ids: range) -> None:
        """Nothing to forget."""

    def closed(self) -> None:
        """Nothing to forget."""


class Watcher(Protocol):
    """Has to see rows before they are overwritten."""

    def save_until(self, row_id: int) -> None:
        """The rows below this id may be overwritten when this returns. Only one thread at a time calls it."""


class Told:
    """Tells a listener how the live rows changed since it was told the last time.

    Attributes:
        listener: The listener.

    It compares where the ring is with what it told. So an interrupt on the way to here loses nothing: the next call tells that change as well.
    """

    def __init__(self, listener: RowListener) -> None:
        self.listener = listener
        self._oldest = self._end = 0

    def begin_anew(self) -> None:
        """Nothing was told yet: the next call tells of all live rows."""
        self._oldest = self._end = 0

    def tell(self, ring: Ring) -> None:
        """Tells of the live rows of `ring`, where they are others than before."""
        oldest, end = self._oldest, self._end
        if oldest < end:
            if ring.oldest > oldest:
                self.listener.evicted(range(oldest, min(ring.oldest, end)))
            if ring.write_count < end:
                self.listener.evicted(range(max(ring.write_count, oldest), end))
        if ring.write_count > max(ring.oldest, end):
            self.listener.inserted(range(max(ring.oldest, end), ring.write_count))
        self._oldest, self._end = ring.oldest, ring.write_count
