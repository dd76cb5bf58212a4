"""How many rows a shard is asked for, where it is to give a number of rows that changes from batch to batch.

A call that is held open takes half as long as one for each batch, and brings batches of one size. So a shard is asked for some rows more than are
needed, always as many, and the others are dropped. They are independent draws: which of them are used does not matter.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["SpareRows"]

SPARE_BYTES = 64 << 10
"""The most bytes that are dropped of one batch of a shard."""
MOST_SIZES = 1024
"""For how many shards and kinds of batches a size is kept."""


class SpareRows:
    """The sizes of the batches that shards are asked for. Several threads may use it: at worst a size is chosen twice."""

    def __init__(self) -> None:
        self._sizes: dict[Hashable, int] = {}
        self._row_bytes: dict[Hashable, int] = {}

    def size(self, key: Hashable, rows: int) -> int:
        """How many rows to ask for, to get `rows` of them. It seldom changes while `rows` varies as a binomial draw does.

        Args:
            key: Of the shard and the kind of batch.
            rows: How many are needed.
        """
        row_bytes, size = self._row_bytes.get(key), self._sizes.get(key, 0)
        if row_bytes is None:
            return rows
        if not rows <= size <= 2 * rows + 32:
            size = _above(rows)
            if len(self._sizes) >= MOST_SIZES:
                self._sizes.clear()
            self._sizes[key] = size
        return size if (size - rows) * row_bytes <= SPARE_BYTES else rows

    def note(self, key: Hashable, row_bytes: int) -> None:
        """Notes how many bytes a row of such batches has."""
        if len(self._row_bytes) >= MOST_SIZES:
            self._row_bytes.clear()
        self._row_bytes[key] = row_bytes


def _above(rows: int) -> int:
    """A number that three standard deviations more stay below."""
    return rows + int(3 * rows**0.5) + 1
