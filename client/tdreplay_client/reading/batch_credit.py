"""What was granted on a call that brings batches, what came, and which segments of shared memory are free. No thread, socket or lock is in here."""

from __future__ import annotations

from collections import deque

from tdreplay.errors import CodecError, InternalError

__all__ = ["BatchCredit"]


class BatchCredit:
    """The credit of one call: the server sends no more batches than it was granted.

    Three threads may use it without a lock, because each of them changes values of its own: one grants and takes batches, one reads what comes, and
    `give_back` may run in any thread and at any moment. A count that another thread just changed makes a grant smaller, and the next one larger.

    Attributes:
        window: the most batches that may be granted and not taken yet.

    Args:
        window: the same, where there are segments enough.
        segments: the number of segments that the server shares; 0: batches come in messages.
        reserve: the number of segments that are never lent to the user, because the next batches need them.
    """

    def __init__(self, window: int, segments: int = 0, reserve: int = 0) -> None:
        self.window = min(window, segments) if segments else window
        self._segments, self._reserve = segments, reserve
        # Granting in groups keeps the cost of a credit off most batches, and lets small batches share a message.
        self._group = max(1, self.window // 2)
        self._granted = self._came = self._taken = self._said = self._borrowed = 0
        # Changed by finalizers, which may run in any thread and at any moment: one operation of a deque or a set is safe then, a lock is not.
        self._returned: deque[int] = deque()
        self._in_use: set[int] = set()
        self._lent: set[int] = set()

    # -- batches --------------------------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> int:
        """Batches that were granted, and not taken yet."""
        return self._granted - self._taken

    def grant(self) -> int:
        """The number of batches to be granted now, which counts as granted from here on; 0: none.

        At least one batch is always due. If no segment is free, it comes in a message.
        """
        room = self.window - self.due
        if self._segments:
            # A batch that just came may count twice, as a segment and as one that is on its way: then the next call grants it.
            room = min(room, self._segments - self.unreturned - (self._granted - self._came))
        if room < self._group:
            if self.due:
                return 0
            room = max(room, 1)
        self._granted += room
        return room

    def came(self) -> None:
        """Counts a batch that came.

        Raises:
            InternalError: it was not granted.
        """
        if self._came >= self._granted:
            raise InternalError("the server sent more batches than it was granted")
        self._came += 1

    def take(self) -> None:
        """Counts a batch that the user takes."""
        self._taken += 1

    @property
    def taken(self) -> int:
        """Batches that the user took."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Batches that came, and were not taken yet."""
        return self._came - self._taken

    @property
    def unsaid(self) -> int:
        """Batches that the user took, and that the server does not know of."""
        return self._taken - self._said

    def say_taken(self) -> int:
        """The number of batches that the user took so far, to be said to the server. The caller sees to it: from here on they count as said."""
        self._said = taken = self._taken
        return taken

    # -- segments -------------------------------------------------------------------------------------------------------------------------------

    @property
    def unreturned(self) -> int:
        """Segments that are in use here."""
        return self._borrowed - len(self._returned)

    def borrow(self, segment: int) -> None:
        """Notes that a batch came in a segment, which is the client's until it is given back.

        Raises:
            CodecError: it was not given back since the server lent it last.
        """
        if segment in self._in_use:
            raise CodecError(f"segment ({segment}): the server lends it twice")
        self._in_use.add(segment)
        self._borrowed += 1

    def give_back(self, segment: int) -> None:
        """Notes that nothing here refers to the memory of a segment any more. A finalizer may call this."""
        self._lent.discard(segment)
        self._in_use.discard(segment)
        self._returned.append(segment)

    def lend(self, segment: int) -> bool:
        """Whether the user may keep the batch in a borrowed segment. Where not, it is to be copied, and the segment given back."""
        if segment not in self._lent and len(self._lent) >= self._segments - self._reserve:
            return False
        self._lent.add(segment)
        return True

    def returned(self) -> list[int]:
        """The segments to be given back to the server. The caller sees to it: they do not count as borrowed any more."""
        segments = [self._returned.popleft() for _ in range(len(self._returned))]
        self._borrowed -= len(segments)
        return segments
