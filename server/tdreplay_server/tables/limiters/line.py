"""Calls that wait in a line, the first one first. It does not know what they wait for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from tdreplay.errors import CancelledError, RateLimitedError
from tdreplay_server.tables.limiters.limiter import Wait, WaitState

__all__ = ["Line", "Visitor"]

LOOK_SECONDS = 0.25
"""So often it is seen whose clients are gone."""


class Visitor:
    """One call that wants to pass.

    Attributes:
        rows: The rows that it is about.
        most: The most batches that it wants.
        granted: How many it got; 0: none yet.
        generation: Of which rows it got them: those before a reset, or after it.
        thread: The thread in which it comes.
        since: When it came: a time of `time.monotonic`.
    """

    __slots__ = ("gate", "generation", "gone", "granted", "most", "rows", "since", "thread", "wait", "woken")

    def __init__(self, rows: int, most: int, wait: Wait) -> None:
        self.rows, self.most, self.wait = rows, most, wait
        self.granted = self.generation = 0
        self.thread = threading.get_ident()
        self.since = time.monotonic()
        self.woken = self.gone = False
        self.gate = threading.Lock()
        self.gate.acquire()

    def wake(self) -> None:
        """(locked) Makes its thread look whether something changed for it."""
        if not self.woken:
            self.woken = True
            self.gate.release()

    def woke(self) -> None:
        """(locked) Its thread looks now. The next call of `wake` wakes it again."""
        self.gate.acquire(blocking=False)  # It was woken after its time was over.
        self.woken = False


class Line:
    """The calls that wait on one side of a table. The methods with "(locked)" want `mutex` to be held.

    The first one in the line is awake every quarter of a second, and looks for all of them whether their clients are gone. The others sleep until
    they are let in, or until their deadline. So a long line costs what a short one does.

    Args:
        mutex: Guards the line, and what `grant` counts.
        grant: (locked) Grants a visitor what it may have now, and counts that. Nothing: the visitor has to wait.
        missing: (locked) What a visitor waits for, in words.
        joined: (locked) Called when somebody began to wait.
    """

    def __init__(
        self, mutex: threading.Lock, grant: Callable[[Visitor], None], missing: Callable[[Visitor], str], joined: Callable[[], None]
    ) -> None:
        self._mutex, self._grant, self._missing, self._joined = mutex, grant, missing, joined
        self._line: deque[Visitor] = deque()
        self._next_look = 0.0
        self._seconds = 0.0

    def __bool__(self) -> bool:
        return bool(self._line)

    @property
    def first(self) -> Visitor | None:
        """(locked) Who waits longest."""
        return self._line[0] if self._line else None

    def pass_through(self, visitor: Visitor) -> None:
        """Returns when the visitor was granted something. If this raises, `leave` has to follow.

        Raises:
            RateLimitedError: its deadline came first.
            CancelledError: nobody wants it any more.
        """
        with self._mutex:
            if not self._line:
                self._grant(visitor)
            if visitor.granted:
                return
            self._line.append(visitor)
            self._joined()
        while (time_to_wake := self._time_to_wake(visitor)) is not None:
            seconds = max(time_to_wake - time.monotonic(), 0)
            if not visitor.gate.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
                self._look()

    def let_in(self) -> None:
        """(locked) Lets those in who may go, from the first one on. Interrupted, and called again, it goes on where it was."""
        first = self.first
        while self._line and self._let_first_in(self._line[0]):
            pass
        if self.first is not first:
            self._wake_first()

    def leave(self, visitor: Visitor) -> None:
        """(locked) A visitor does not wait any more. Nothing happens where it did not."""
        if visitor in self._line:
            self._remove(visitor)
            self._wake_first()

    def waiting_in(self, thread: int) -> list[Visitor]:
        """(locked) The visitors of a thread."""
        return [visitor for visitor in self._line if visitor.thread == thread]

    def state(self) -> WaitState:
        """(locked) How they wait."""
        now, first = time.monotonic(), self.first
        seconds = self._seconds + sum(now - visitor.since for visitor in self._line)
        return WaitState(len(self._line), seconds, "" if first is None else self._missing(first))

    def _let_first_in(self, first: Visitor) -> bool:
        if not first.granted and not first.gone:
            self._grant(first)
        if first.granted or first.gone:
            self._remove(first)
            first.wake()
        return bool(first.granted or first.gone)

    def _time_to_wake(self, visitor: Visitor) -> float | None:
        """Until when a visitor sleeps; None: it was granted something."""
        with self._mutex:
            visitor.woke()
            if visitor.granted:
                return None
            if visitor.gone:
                raise CancelledError("the client ended the call while it waited for the table")
            if time.monotonic() >= visitor.wait.until:
                raise RateLimitedError(self._missing(visitor))
            return min(visitor.wait.until, self._next_look) if visitor is self.first else visitor.wait.until

    def _look(self) -> None:
        """Sends those away whose clients are gone."""
        with self._mutex:
            if time.monotonic() < self._next_look:
                return
            self._next_look = time.monotonic() + LOOK_SECONDS
            visitors = list(self._line)
        gone = [visitor for visitor in visitors if not visitor.wait.wanted()]
        with self._mutex:
            for visitor in gone:
                visitor.gone = True
                visitor.wake()

    def _remove(self, visitor: Visitor) -> None:
        self._line.remove(visitor)
        self._seconds += time.monotonic() - visitor.since

    def _wake_first(self) -> None:
        """The one that is first now looks from now on whose clients are gone."""
        if self._line:
            self._line[0].wake()
