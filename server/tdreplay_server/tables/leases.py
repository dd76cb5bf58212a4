"""Batches on their way to a learner. Their rows count as drawn when the learner takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tdreplay.limits import check_whole
from tdreplay_server.tables.selection import Selection

__all__ = ["Drawn", "Lease", "SentBatches"]


class Lease(Protocol):
    """One batch that was drawn. Either `taken` is called, or `offer` and then `free`, each once, from any thread. None of them waits."""

    def make_room(self) -> None:
        """From now on inserts may come in the place of its rows, as if they were taken. It may be called once, before the others."""

    def taken(self) -> None:
        """A learner took the batch: its rows count as drawn."""

    def offer(self) -> None:
        """Nobody took the batch: its rows can be drawn again, where the sampler's order has them. Who waits for rows does not get them yet."""

    def free(self) -> None:
        """Who waits for rows may draw them now."""


class Drawn(NamedTuple):
    """Batches that were drawn.

    Attributes:
        selection: Their rows, batch after batch.
        leases: One for each batch; none where nobody counts what is drawn.
    """

    selection: Selection
    leases: Sequence[Lease]


class SentBatches:
    """The leases of the batches that were sent over one call, and not taken yet, in order. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._leases: deque[Lease] = deque()
        self._sent = self._taken = 0
        self._changing = threading.Lock()

    def sent(self, leases: Sequence[Lease], batches: int) -> None:
        """Notes batches that are sent next, with their leases, where they have any."""
        with self._changing:
            self._leases.extend(leases)
            self._sent += batches

    def taken(self, batches: int) -> None:
        """Notes that the learner has taken so many batches of the call so far.

        Raises:
            InvalidArgumentError: they are more than were sent, or fewer than it said before.
        """
        with self._changing:
            more = check_whole(batches, "taken", self._taken, self._sent) - self._taken
            self._taken = batches
            leases = [self._leases.popleft() for _ in range(min(more, len(self._leases)))]
        for lease in leases:
            lease.taken()

    def all_taken(self) -> None:
        """Notes that the learner has taken all batches of the call so far."""
        self.taken(self._sent)

    def close(self) -> None:
        """Gives back what was not taken. Nobody draws of these rows before all of them are there again: so they come in order."""
        with self._changing:
            leases = list(self._leases)
            self._leases.clear()
        for lease in leases:
            lease.offer()
        for lease in leases:
            lease.free()
