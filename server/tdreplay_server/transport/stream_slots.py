"""Room for long-lived streams: fewer than there may be calls, so that they leave some to the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tdreplay.errors import StreamLimitError

__all__ = ["StreamSlots"]


class StreamSlots:
    """Room for long-lived streams, fewer than there are workers, so that they cannot starve the other calls.

    Standing calls, which their clients hold open between single calls and can do without, have room of their own.

    Args:
        limit: how many streams there may be.
        standing_limit: how many standing calls beside them.
    """

    def __init__(self, limit: int, standing_limit: int) -> None:
        self._limit = limit
        self._free = {False: limit, True: standing_limit}
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, *, standing: bool = False) -> Iterator[None]:
        """Holds a slot.

        Raises:
            StreamLimitError: none is free.
        """
        with self._lock:
            if not self._free[standing]:
                which = "as many standing calls as there is room for are" if standing else f"{self._limit} streams (max_streams) are"
                raise StreamLimitError(f"{which} open on this server; close one, or raise the setting")
            self._free[standing] -= 1
        try:
            yield
        finally:
            with self._lock:
                self._free[standing] += 1
