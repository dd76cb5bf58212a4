"""Names that are in use: what concerns one name goes one after the other, and what concerns other names does not wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tdreplay.errors import ServerUnavailableError

__all__ = ["BusyNames"]


class BusyNames:
    """Gives a name to one holder at a time, until it is closed."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._at_work = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """For ``with``: holds a name, once nobody else holds it.

        Raises:
            ServerUnavailableError: it is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or name not in self._busy)
            self._check_open()
            self._busy.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._busy.remove(name)
                self._changed.notify_all()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """For ``with``: work for which `close` waits.

        Raises:
            ServerUnavailableError: it is closed.
        """
        with self._changed:
            self._check_open()
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ServerUnavailableError("the server is stopping")

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Gives out no more names, and returns when all work is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy and not self._at_work)
