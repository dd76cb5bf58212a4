"""The writers whose blocks come over one call."""

from __future__ import annotations

from collections import OrderedDict

from tdreplay_server.durability.ledger import MAX_WRITERS
from tdreplay_server.tables.table import Table
from tdreplay_server.tables.trajectories.connected_writers import ConnectedWriter

__all__ = ["CallWriters"]


class CallWriters:
    """They are connected to their tables until the call ends. Of more than a table remembers, those are forgotten that came first."""

    def __init__(self) -> None:
        self._connected: OrderedDict[tuple[int, str], tuple[Table, ConnectedWriter]] = OrderedDict()

    def note(self, table: Table, writer_id: str) -> None:
        """A block of this writer came for a table."""
        if not table.has_trajectories or (id(table), writer_id) in self._connected:
            return
        if len(self._connected) == MAX_WRITERS:
            _, (_, first) = self._connected.popitem(last=False)
            first.close()
        self._connected[id(table), writer_id] = table, table.writing(writer_id)

    def close(self) -> None:
        """They are not connected any more."""
        while self._connected:
            _, (_, writer) = self._connected.popitem()
            writer.close()
