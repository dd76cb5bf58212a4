"""The newest rows first."""

from __future__ import annotations

from collections.abc import Iterator

from tdreplay_server.storage.ring import RowIds
from tdreplay_server.tables.samplers.order_sampler import OrderSampler, windows

__all__ = ["LifoSampler"]


class LifoSampler(OrderSampler):
    """Takes the newest rows that may be drawn, in descending order of their ids."""

    def _start(self, buffer_size: int) -> None:
        super()._start(buffer_size)
        self._top = 0

    def inserted(self, ids: range) -> None:
        """Notes the rows, which come before all others."""
        super().inserted(ids)
        self._top = self._rows.end

    def _in_order(self, rows: int) -> Iterator[RowIds]:
        top = min(self._top, self._rows.end)
        for start, stop in windows(rows, top - self._rows.oldest):
            yield self._rows.among(range(top - stop, top - start))[::-1]

    def _note_first(self, row_id: int) -> None:
        self._top = row_id + 1

    def _note_offered(self, ids: RowIds) -> None:
        self._top = max(self._top, int(ids.max()) + 1)
