"""A thread that looks after shards: those that are lost, and those that come and go."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from tdreplay_client.transport.threads import start_reader

__all__ = ["LOOK_SECONDS", "Watch", "Watched"]

LOOK_SECONDS = 0.25
"""How often a lost shard is asked whether it is back."""


class Watched(Protocol):
    """What is looked after."""

    def look(self) -> bool:
        """Looks once. Gives whether there is a reason to look again."""


class Watch:
    """Looks at something again and again, as long as it lives and there is a reason. There is no thread before `wake`, and none behind the reason.

    Args:
        watched: What is looked at. The watch does not keep it alive.
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = weakref.ref(watched)
        self._deciding, self._ended = threading.Lock(), threading.Event()
        self._awake = self._called = False
        weakref.finalize(watched, self._ended.set).atexit = False

    def wake(self) -> None:
        """Begins to look, unless it does so already. Any thread may call it; it does not wait."""
        with self._deciding:
            self._called = True
            if self._awake or self._ended.is_set():
                return
            self._awake = True
        start_reader(self._look)

    def _look(self) -> None:
        """In the thread."""
        while not self._ended.wait(LOOK_SECONDS):
            self._called = False
            watched = self._watched()
            again = watched is not None and watched.look()
            del watched
            with self._deciding:
                if not again and not self._called:
                    self._awake = False
                    return

    def close(self) -> None:
        """Ends it. Closing twice is allowed."""
        self._ended.set()
