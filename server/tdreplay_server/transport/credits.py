"""The credits of a stream: the client grants batches, or names each one, and the server sends no batch that was not granted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_whole
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.shared_memory import Segments

__all__ = ["Credits", "Granted"]


class Granted(NamedTuple):
    """What is to be sent next.

    Attributes:
        batches: How many batches.
        named: What the client says of the one batch that it is, a `NextBatch`; None: they are as the query says.
    """

    batches: int
    named: Any = None


class Credits:
    """The batches that a client has granted and not received yet.

    Args:
        first: the credits that came with the query.
        requests: the client's further messages. Each grants more credits or names batches, and gives segments of shared memory back.
        segments: the shared memory of the call; None: it has none.
        note: told of each further message. It checks the batches that a message names.

    Raises:
        InvalidArgumentError: (here and in `take`) the client grants a negative number, or gives back what it does not have.
    """

    def __init__(self, first: int, requests: Iterator[Request], segments: Segments | None, note: Callable[[Any], object] = bool) -> None:
        self._left = check_whole(first, "credits", 0)
        self._requests, self._segments, self._note = requests, segments, note
        self._named = deque[Any]()

    def take(self, most: int) -> int:
        """Uses up to `most` credits, and gives their number. Waits until there is one; 0: the client will grant no more."""
        granted = self.granted(most)
        return 0 if granted is None else granted.batches

    def granted(self, most: int) -> Granted | None:
        """The same, or the next batch that was named. None: the client will grant no more."""
        while not (self._left or self._named):
            request = next(self._requests, None)
            if request is None:
                return None
            self._left = check_whole(request.head.credits, "credits", 0)
            self._release(request.head.released_slots)
            self._note(request.head)
            self._named.extend(getattr(request.head, "next", ()))
        if self._named:
            return Granted(1, self._named.popleft())
        taken = min(most, self._left)
        self._left -= taken
        return Granted(taken)

    def give_back(self, batches: int) -> None:
        """Takes back credits that were not used."""
        self._left += batches

    def _release(self, released: Sequence[int]) -> None:
        if self._segments is not None:
            self._segments.release(released)
        elif released:
            raise InvalidArgumentError(f"released_slots ({released[0]}): the server shares no memory with this call")
