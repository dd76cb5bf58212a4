"""Inserts that failed, and which of their rows went to which shard: given again, they go to the same shards.

Each shard's table knows its part again, and sends what may be stored under the numbers that it had: see `UnacknowledgedInserts`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tdreplay.digests import digest_of
from tdreplay.rows import Given
from tdreplay.schema import Schema
from tdreplay.system_fields import PRIORITY
from tdreplay_client.sharding.shard_choice import ShardPart

__all__ = ["Route", "Routes", "SentPart", "parts_in_turn"]

MAX_ROUTES = 64
RowIds = npt.NDArray[np.int64]


@dataclass(eq=False)
class SentPart:
    """A part of an insert.

    Attributes:
        part: Its rows, and the number of the shard to which they go.
        may_move: Whether another shard may get it: none was sent any of it, and no key says which shard it is.
        waits: Whether no shard was chosen yet: a rate limiter may let the rows wait. The number is no shard's.
        row_ids: Those of the shard, when it is stored.
        sending: What sends it, where that is another thread.
    """

    part: ShardPart
    may_move: bool = False
    waits: bool = False
    row_ids: RowIds | None = None
    sending: Future[RowIds] | None = None


@dataclass(eq=False)
class Route:
    """An insert that failed.

    Attributes:
        rows, schema, digest: By these its rows are known again.
        parts: Where they went.
        thread: The thread that sends them again; 0: none does.
        is_over: Whether they are stored: who gives such rows now gives new ones.
    """

    rows: int
    schema: Schema
    digest: bytes
    parts: list[SentPart]
    thread: int = 0
    is_over: bool = False


class Routes:
    """The failed inserts of one buffer over shards, and its writers'; where there are more than 64, the last ones."""

    def __init__(self) -> None:
        self._routes: deque[Route] = deque(maxlen=MAX_ROUTES)
        self._lock = threading.Lock()

    def note(self, rows: Given, parts: list[SentPart]) -> None:
        """Keeps where the parts of an insert went that failed."""
        schema, digest = _known_by(rows)
        with self._lock:
            kept = [route for route in self._routes if not route.is_over]
            self._routes = deque([*kept, Route(rows.number, schema, digest, parts)], MAX_ROUTES)

    def knows(self, rows: Given) -> bool:
        """Whether these rows were given before, and failed."""
        return self._found(rows) is not None

    def claim(self, rows: Given) -> Route | None:
        """Where the parts of these rows went, if they were given before, and failed. None: they were not, or another thread sends them again.

        The route stays until it is over: where this thread is interrupted, it finds it again.
        """
        with self._lock:
            found = self._found(rows)
            if found is not None:
                found.thread = threading.get_ident()
            return found

    def _found(self, rows: Given) -> Route | None:
        if not any(route.rows == rows.number and not route.is_over for route in tuple(self._routes)):
            return None
        known, free = (rows.number, *_known_by(rows)), (0, threading.get_ident())
        alike = (route for route in tuple(self._routes) if (route.rows, route.schema, route.digest) == known)
        return next((route for route in alike if route.thread in free and not route.is_over), None)

    def clear(self) -> None:
        """Forgets them: the tables do not hold earlier rows any more."""
        with self._lock:
            self._routes.clear()


def _known_by(rows: Given) -> tuple[Schema, bytes]:
    """By what rows are known again: their contents, without the priorities that an error may have handed back as a field of them."""
    columns: dict[str, Any] = dict(rows.columns(None, cast=False))
    if len(columns) > 1 and PRIORITY.name in columns and columns[PRIORITY.name].dtype is PRIORITY.dtype:
        del columns[PRIORITY.name]
    return rows.schema(columns), digest_of(columns)


def parts_in_turn(numbers: Sequence[int], rows: Sequence[int]) -> list[SentPart]:
    """The parts of an insert whose first rows go to the first of these shards, and so on."""
    stops = np.cumsum(rows)
    return [SentPart(ShardPart(number, np.arange(stop - count, stop))) for number, count, stop in zip(numbers, rows, stops, strict=True)]
