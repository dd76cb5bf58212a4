"""What the tables were like over the last minutes: the server is asked once a second, whether somebody looks or not."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tdreplay.description_messages import description_from_message
from tdreplay.errors import ReplayError, TableNotFoundError
from tdreplay.table_description import TableDescription
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client.dashboard.limits import HISTORY_SECONDS, POLL_SECONDS, TABLES
from tdreplay_client.dashboard.words import in_words
from tdreplay_client.transport.connection import Connection

__all__ = ["Observer", "Point", "Seen"]


class Point(NamedTuple):
    """What a table was like at one moment.

    Attributes:
        time: Seconds since 1970.
        size: Rows stored.
        insert_rate, sample_rate: Rows a second, as the server counts them over its last ten seconds.
        replay_ratio: Rows sampled for each row inserted, over the same time; None: none was inserted.
        inserts_waiting, samples_waiting: Calls that wait for the rate limiter, or for rows.
    """

    time: float
    size: int
    insert_rate: float
    sample_rate: float
    replay_ratio: float | None
    inserts_waiting: int
    samples_waiting: int

    @classmethod
    def of(cls, moment: float, table: TableDescription) -> Point:
        """The point of a description."""
        ratio = table.sample_rate / table.insert_rate if table.insert_rate > 0 else None
        waiting = table.inserts.waiting, table.samples.waiting
        return cls(moment, table.size, table.insert_rate, table.sample_rate, ratio, *waiting)


@dataclass(frozen=True)
class Seen:
    """A table as it was seen last, and over the last minutes.

    Attributes:
        description: What the server said of it last.
        points: One for each time that it was asked, the oldest first.
    """

    description: TableDescription
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=int(HISTORY_SECONDS / POLL_SECONDS)))

    def since(self, moment: float) -> dict[str, list[Any]]:
        """The points after a moment, as columns: the name of an attribute -> its values."""
        points = [point for point in self.points if point.time > moment]
        return {name: [getattr(point, name) for point in points] for name in Point._fields}


class Observer:
    """Asks the server what its tables are like, once a second, in a thread of its own. For ``with``.

    A server that is away is asked again, until it is back: the curves have a gap then.

    Attributes:
        error: Why the server could not be asked the last time, in plain words; '': it answered.
        more_tables: Tables that are left out, because there are too many.

    Args:
        connection: To the server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tables: dict[str, Seen] = {}
        self._status: pb.ServerStatusResponse | str = "the server was not asked yet"
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tdreplay-dashboard", daemon=True)
        self.error, self.more_tables = "", 0

    def __enter__(self) -> Observer:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def tables(self) -> dict[str, Seen]:
        """The tables by name, as they were seen last. Nobody changes this mapping."""
        return self._tables

    @property
    def status(self) -> pb.ServerStatusResponse | str:
        """What the server said of itself last; a text: why it does not."""
        return self._status

    def look(self) -> None:
        """Asks the server now."""
        try:
            self._status = self._asked(lambda: self._connection.unary("ServerStatus", pb.ServerStatusRequest()))
            names = list(self._connection.unary("ListTables", pb.ListTablesRequest()).tables)
            self._tables = self._described(names[:TABLES])
            self.more_tables, self.error = max(0, len(names) - TABLES), ""
        except ReplayError as error:
            self.error = in_words(error)

    def points_since(self, seen: Seen, moment: float) -> dict[str, list[Any]]:
        """As `Seen.since`. No point comes or goes meanwhile."""
        with self._lock:
            return seen.since(moment)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """The answer of the server, or, where that is a refusal, the refusal in plain words."""
        try:
            return ask()
        except ConnectionError:
            raise
        except ReplayError as error:
            return in_words(error)

    def _described(self, names: list[str]) -> dict[str, Seen]:
        found = {}
        for name in names:
            with suppress(TableNotFoundError):  # It was dropped since the names were listed.
                answer = self._connection.unary("Describe", pb.DescribeRequest(table=name))
                found[name] = self._with_point(name, description_from_message(answer, name))
        return found

    def _with_point(self, name: str, description: TableDescription) -> Seen:
        known = self._tables.get(name)
        seen = Seen(description) if known is None else Seen(description, known.points)
        with self._lock:
            seen.points.append(Point.of(time.time(), description))
        return seen

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.look()
