"""Rows that have left their tables, of batches that did not become whole."""

from __future__ import annotations

import threading

from tdreplay_client.sharding.drawing import Drawing, Given
from tdreplay_client.sharding.totals import DrawKind

__all__ = ["KeptRows"]


class KeptRows:
    """Keeps such rows for the next batches of their kind: no other batch gets them any more. Several threads may use it."""

    def __init__(self) -> None:
        self._keeping = threading.Lock()
        self._kept: list[tuple[DrawKind, Given]] = []

    def keep(self, drawing: Drawing) -> None:
        """Keeps the rows of a batch that did not become whole."""
        with self._keeping:
            self._kept += [(drawing.query.kind, one) for one in drawing.given]

    def begin(self, drawing: Drawing) -> None:
        """Begins a batch with the rows that were kept."""
        if not self._kept:
            return
        with self._keeping:
            kept, self._kept = self._kept, []
            for kind, one in kept:
                taken = min(one.rows, drawing.missing) if kind == drawing.query.kind else 0
                if taken:
                    drawing.given.append(one._replace(rows=taken))
                if taken < one.rows:
                    self._kept.append((kind, one._replace(start=one.start + taken, rows=one.rows - taken)))

    def clear(self) -> None:
        """Forgets them: they are no rows of the tables any more."""
        with self._keeping:
            self._kept.clear()
