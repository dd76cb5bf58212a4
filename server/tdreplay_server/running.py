"""The calls that run: a server that stops begins no other, and waits for these."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tdreplay.errors import ServerUnavailableError

__all__ = ["RunningCalls"]


class RunningCalls:
    """Counts the calls that run.

    gRPC could refuse new calls by itself, but those that come while it tells its clients end as CANCELLED, which says nothing of the server.
    """

    def __init__(self) -> None:
        self._count = 0
        self._stopping = False
        self._changed = threading.Condition()

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call runs.

        Raises:
            ServerUnavailableError: the server stops.
        """
        with self._changed:
            if self._stopping:
                raise ServerUnavailableError("the server is stopping")
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def refuse(self) -> None:
        """Begins no call from now on."""
        with self._changed:
            self._stopping = True

    def wait(self, seconds: float) -> None:
        """Blocks until no call runs, at most for so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count, seconds)
