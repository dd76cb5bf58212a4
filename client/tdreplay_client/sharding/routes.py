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

__all__ = ["Routes", "SentPart", "parts_in_turn"]

MAX_ROUTES = 64
RowIds = npt.NDArray[np.int64]


@dataclass(eq=False)
class SentPart:
    """A part of an insert.

    Attributes:
        part: Its rows, and the number of the shard to which they go.
        row_ids: Those of the shard, when it is stored.
        sending: What sends it, where that is another thread.
    """

    part: ShardPart
    row_ids: RowIds | None = None
    sending: Future[RowIds] | None = None


@dataclass(frozen=True, eq=False)
class _Route:
    rows: int
    schema: Schema
    digest: bytes
    parts: Sequence[SentPart]


class Routes:
    """The failed inserts of one buffer over shards, and its writers'; where there are more than 64, the last ones."""

    def __init__(self) -> None:
        self._routes: deque[_Route] = deque(maxlen=MAX_ROUTES)
        self._lock = threading.Lock()

    def note(self, rows: Given, parts: Sequence[SentPart]) -> None:
        """Keeps where the parts of an insert went that failed."""
        schema, digest = _known_by(rows)
        with self._lock:
            self._routes.append(_Route(rows.number, schema, digest, parts))

    def knows(self, rows: Given) -> bool:
        """Whether these rows were given before, and failed."""
        if not self._may_know(rows):
            return False
        schema, digest = _known_by(rows)
        return any((route.rows, route.schema, route.digest) == (rows.number, schema, digest) for route in tuple(self._routes))

    def _may_know(self, rows: Given) -> bool:
        return bool(self._routes) and any(route.rows == rows.number for route in tuple(self._routes))

    def claim(self, rows: Given) -> Sequence[SentPart] | None:
        """Where the parts of these rows went, if they were given before, and failed. None: they were not."""
        if not self._may_know(rows):
            return None
        schema, digest = _known_by(rows)
        with self._lock:
            found = next((route for route in self._routes if (route.rows, route.schema, route.digest) == (rows.number, schema, digest)), None)
            if found is None:
                return None
            self._routes.remove(found)
            return found.parts

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
