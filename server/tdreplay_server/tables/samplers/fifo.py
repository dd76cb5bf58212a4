"""The oldest rows first."""

from __future__ import annotations

from collections.abc import Iterator

from tdreplay_server.storage.ring import RowIds
from tdreplay_server.tables.samplers.order_sampler import OrderSampler, windows

__all__ = ["FifoSampler"]


class FifoSampler(OrderSampler):
    """Takes the oldest rows that may be drawn, in ascending order of their ids."""

    def _start(self, buffer_size: int) -> None:
        super()._start(buffer_size)
        self._front = 0

    def inserted(self, ids: range) -> None:
        """Notes the rows. If they are the only ones, their ids may begin anywhere."""
        super().inserted(ids)
        self._front = min(self._front, ids.start)

    def evicted(self, ids: range) -> None:
        """Notes that the rows are gone. The next rows may have ids of theirs."""
        super().evicted(ids)
        self._front = min(self._front, self._rows.end)

    def _in_order(self, rows: int) -> Iterator[RowIds]:
        front = max(self._front, self._rows.oldest)
        for start, stop in windows(rows, self._rows.end - front):
            yield self._rows.among(range(front + start, front + stop))

    def _note_first(self, row_id: int) -> None:
        self._front = row_id

    def _note_offered(self, ids: RowIds) -> None:
        self._front = min(self._front, int(ids.min()))
