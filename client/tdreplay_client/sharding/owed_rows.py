"""How many rows of a batch each shard is still to give. Nothing here asks a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["OwedRows"]


class OwedRows:
    """How many rows of one batch each shard is still to give, and which shards do not let rows out now.

    What a shard's rate limiter refuses is drawn from the others. Else a batch could wait for rows of this shard while whoever would insert them waits
    for draws of another one. Once all have refused, all are asked again, each for half as many rows at once: a shard at which an insert waits lets a
    small part out, and then the insert in.

    Args:
        most: The most rows that a shard is asked for at once.
    """

    def __init__(self, most: int) -> None:
        self._most = self._first_most = most
        self._owed: dict[int, int] = {}
        self._refusing: set[int] = set()

    def anew(self) -> OwedRows:
        """The same at the beginning."""
        return OwedRows(self._first_most)

    def __bool__(self) -> bool:
        """Whether a shard is still to give some."""
        return bool(self._owed)

    def open(self, numbers: Iterable[int]) -> list[int]:
        """Those of these shards that may let rows out."""
        asked = list(numbers)
        found = [number for number in asked if number not in self._refusing]
        if not found:
            self._refusing.clear()
            self._most = max(1, self._most // 2)
        return found or asked

    def share_out(self, counts: Mapping[int, int]) -> None:
        """The shards of these numbers are to give so many rows each."""
        self._owed = {number: count for number, count in counts.items() if count}

    def next(self) -> dict[int, int]:
        """How many rows each shard is to be asked for now."""
        return {number: min(count, self._most) for number, count in self._owed.items()}

    def gave(self, number: int, rows: int) -> None:
        """Notes that a shard gave so many."""
        left = self._owed.pop(number, 0) - rows
        if left > 0:
            self._owed[number] = left

    def failed(self, number: int, *, refused: bool) -> None:
        """Notes that a shard gave none: what it owes is shared out anew. `refused`: its rate limiter does not let them out now."""
        self._owed.pop(number, None)
        if refused:
            self._refusing.add(number)
