"""What ``tdreplay top`` remembers: the rates of the last minutes, and whether the server is there."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tdreplay_client.commands.looks import Look, samples_per_insert

if TYPE_CHECKING:
    from tdreplay.server_status import ConnectedClient
    from tdreplay.table_description import TableDescription

__all__ = ["ORDERS", "SPAN_SECONDS", "Point", "View"]

SPAN_SECONDS = 180.0
"""How far back rates are remembered."""
MOST_POINTS = 2000

ORDERS = {
    "name": lambda table: (table.config.name,),
    "fill": lambda table: (-table.size / table.buffer_size, table.config.name),
    "inserts": lambda table: (-table.insert_rate, table.config.name),
    "samples": lambda table: (-table.sample_rate, table.config.name),
    "ratio": lambda table: (-(samples_per_insert(table) or 0.0), table.config.name),
    "waiting": lambda table: (-table.inserts.waiting - table.samples.waiting, table.config.name),
}
"""The orders of the tables: the name of the column -> the key, by which the largest comes first."""


@dataclass(frozen=True)
class Point:
    """The rates of a table at one moment, in rows a second."""

    moment: float
    inserts: float
    samples: float


@dataclass
class View:
    """What is shown, and how.

    Attributes:
        look: the last look at the server that came.
        away_since: when the first look failed that no good one followed; None: the server is there.
        reason: why the last look failed.
        order: the name of the order of the tables.
        reverse: whether they come in the opposite order.
        first: how many tables are scrolled out of sight.
    """

    look: Look
    away_since: float | None = None
    reason: str = ""
    order: str = "name"
    reverse: bool = False
    first: int = 0
    _points: dict[str, deque[Point]] = field(default_factory=dict)
    _before: Look | None = None

    def __post_init__(self) -> None:
        self._remember(self.look)

    def came(self, look: Look) -> None:
        """The server was looked at."""
        self._before, self.look, self.away_since = self.look, look, None
        self._remember(look)

    def failed(self, reason: str, moment: float) -> None:
        """The server could not be looked at."""
        self.reason = reason
        if self.away_since is None:
            self.away_since = moment

    def _remember(self, look: Look) -> None:
        there = {table.config.name for table in look.tables}
        self._points = {name: points for name, points in self._points.items() if name in there}
        for table in look.tables:
            points = self._points.setdefault(table.config.name, deque(maxlen=MOST_POINTS))
            points.append(Point(look.taken, table.insert_rate, table.sample_rate))
            while points[0].moment < look.taken - SPAN_SECONDS:
                points.popleft()

    def points(self, table: str) -> Sequence[Point]:
        """The rates of a table over the last minutes, the oldest first."""
        return self._points.get(table, ())

    def tables(self) -> list[TableDescription]:
        """All tables, in the order that was chosen."""
        return sorted(self.look.tables, key=ORDERS[self.order], reverse=self.reverse)

    def next_order(self) -> None:
        """Takes the order that comes after this one."""
        names = list(ORDERS)
        self.order, self.first = names[(names.index(self.order) + 1) % len(names)], 0

    def client_rates(self, client: ConnectedClient) -> tuple[float, float]:
        """The bytes a second that a client sent and got since the look before; 0 of one that is new."""
        before = next((old for old in self._before.server.clients if _same(old, client)), None) if self._before else None
        if self._before is None or before is None or self.look.taken <= self._before.taken:
            return 0.0, 0.0
        seconds = self.look.taken - self._before.taken
        sent, got = client.bytes_received - before.bytes_received, client.bytes_sent - before.bytes_sent
        return max(0, sent) / seconds, max(0, got) / seconds


def _same(one: ConnectedClient, other: ConnectedClient) -> bool:
    return (one.peer, one.name) == (other.peer, other.name)
