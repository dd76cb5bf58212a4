"""A thread that moves rows of writers whose shard is lost, while their users do something else."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from tdreplay_client.sharding.watch import Watch

__all__ = ["Tended", "WriterWatch"]


class Tended(Protocol):
    """The shards of a writer."""

    def tend(self) -> bool:
        """Moves rows that have to move. Gives whether it holds any rows."""


class WriterWatch:
    """Tends the writers of a buffer over shards, again and again as long as any of them holds rows. It keeps none of them alive."""

    def __init__(self) -> None:
        self._writers, self._adding = weakref.WeakSet[Tended](), threading.Lock()
        self._watch = Watch(self)

    def add(self, writer: Tended) -> None:
        """Tends a writer from its next `wake` on."""
        with self._adding:
            self._writers.add(writer)

    def wake(self) -> None:
        """Says that a writer is given rows. It does not wait."""
        self._watch.wake()

    def look(self) -> bool:
        """Tends all writers. Gives whether any of them holds rows."""
        with self._adding:
            writers = list(self._writers)
        holding = [writer.tend() for writer in writers]
        return any(holding)

    def close(self) -> None:
        """Ends it. Closing twice is allowed."""
        self._watch.close()
