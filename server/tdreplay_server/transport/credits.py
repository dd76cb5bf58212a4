"""The credits of a stream: the client grants batches, and the server sends no batch that was not granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_whole
from tdreplay_server.transport.call import Request
from tdreplay_server.transport.shared_memory import Segments

__all__ = ["Credits"]


class Credits:
    """The batches that a client has granted and not received yet.

    Args:
        first: the credits that came with the query.
        requests: the client's further messages. Each grants more credits, and gives segments of shared memory back.
        segments: the shared memory of the call; None: it has none.
        note: told of each further message.

    Raises:
        InvalidArgumentError: (here and in `take`) the client grants a negative number, or gives back what it does not have.
    """

    def __init__(self, first: int, requests: Iterator[Request], segments: Segments | None, note: Callable[[Any], object] = bool) -> None:
        self._left = check_whole(first, "credits", 0)
        self._requests, self._segments, self._note = requests, segments, note

    def take(self, most: int) -> int:
        """Uses up to `most` credits, and gives their number. Waits until there is one; 0: the client will grant no more."""
        while not self._left:
            request = next(self._requests, None)
            if request is None:
                return 0
            self._left = check_whole(request.head.credits, "credits", 0)
            self._release(request.head.released_slots)
            self._note(request.head)
        taken = min(most, self._left)
        self._left -= taken
        return taken

    def give_back(self, batches: int) -> None:
        """Takes back credits that were not used."""
        self._left += batches

    def _release(self, released: Sequence[int]) -> None:
        if self._segments is not None:
            self._segments.release(released)
        elif released:
            raise InvalidArgumentError(f"released_slots ({released[0]}): the server shares no memory with this call")
