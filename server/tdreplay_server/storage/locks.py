"""A readers-writer lock that is fair: readers and writers take turns, so that neither can keep the other out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

__all__ = ["ReadWriteLock"]


class ReadWriteLock:
    """Any number of readers at once, or one writer alone. Not reentrant.

    It is phase-fair (Brandenburg and Anderson, "Reader-Writer Synchronization for Shared-Memory Multiprocessor Real-Time Systems", ECRTS 2009):
    while a writer waits, new readers wait too; when a writer is done, all readers that wait go in together, and then the next writer. So a reader
    waits for one writer at most, however many there are, and a writer for the readers of one phase.

    Each thread that waits is woken by itself, when its turn has come: no herd of threads wakes up to find that only one of them may go on.

    What is done under the lock is a copy between memory blocks, a note in the journal, and with the durability power a flush to the disk; never I/O
    on a socket. So every wait ends.

    It knows which threads hold it: one that was interrupted (Ctrl-C) on its way in or out gives it back by `let_go`, or when it comes again.

    Attributes:
        reads: counts those who read.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._mutex = threading.Lock()
        self._readers: set[int] = set()
        self._writer: int | None = None
        self._waiting_readers: list[_Turn] = []
        self._waiting_writers: deque[_Turn] = deque()
        self._read, self._write = Guard(self._begin_read, self._end_read), Guard(self._begin_write, self._end_write)

    def read(self) -> Guard:
        """For ``with``: holds the lock as one of the readers."""
        return self._read

    def write(self) -> Guard:
        """For ``with``: holds the lock alone."""
        return self._write

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        thread = threading.get_ident()
        with self._mutex:
            for turn in (*self._waiting_readers, *self._waiting_writers):
                turn.waits = turn.waits and turn.thread != thread
        self._end_write()
        self._end_read()

    def _begin_read(self) -> None:
        thread = threading.get_ident()
        with self._mutex:
            if self._writer is None and not self._waiting_writers:
                self.reads += 1
                self._readers.add(thread)
                return
            turn = _Turn(thread)
            self._waiting_readers.append(turn)
            self._let_in(after_write=self._gave_back(thread))
        self._await(turn)

    def _begin_write(self) -> None:
        thread = threading.get_ident()
        with self._mutex:
            if self._writer is None and not self._readers:
                self._writer = thread
                return
            turn = _Turn(thread)
            self._waiting_writers.append(turn)
            self._let_in(after_write=self._gave_back(thread))
        self._await(turn)

    def _end_read(self) -> None:
        thread = threading.get_ident()
        with self._mutex:
            self._readers.discard(thread)
            if self._waiting_readers or self._waiting_writers:
                self._let_in()

    def _end_write(self) -> None:
        thread = threading.get_ident()
        with self._mutex:
            if self._writer == thread:
                self._writer = None
                self._let_in(after_write=True)

    def _await(self, turn: _Turn) -> None:
        try:
            turn.gate.acquire()
        except BaseException:  # Ctrl-C.
            self.let_go()
            raise

    def _gave_back(self, thread: int) -> bool:
        """Whether a thread that comes was the writer still, because it was interrupted on its way out: it is not any more, nor a reader."""
        self._readers.discard(thread)
        wrote = self._writer == thread
        if wrote:
            self._writer = None
        return wrote

    def _let_in(self, *, after_write: bool = False) -> None:
        """Lets those in whose turn it is. Interrupted, and called again, it goes on where it was."""
        while self._waiting_writers and not self._waiting_writers[0].waits:
            self._waiting_writers.popleft()
        if self._writer is None and (after_write or not self._waiting_writers):
            self._let_readers_in()
        if self._writer is None and self._waiting_writers and not self._readers:
            turn = self._waiting_writers[0]
            self._writer = turn.thread
            turn.waits = False
            turn.gate.release()
            self._waiting_writers.popleft()

    def _let_readers_in(self) -> None:
        while self._waiting_readers:
            turn = self._waiting_readers[-1]
            if turn.waits:
                self.reads += 1
                self._readers.add(turn.thread)
                turn.waits = False
                turn.gate.release()
            self._waiting_readers.pop()


class _Turn:
    """What one thread waits for."""

    __slots__ = ("gate", "thread", "waits")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.waits = True
        self.gate = threading.Lock()
        self.gate.acquire()


class Guard:
    """For ``with``: holds the lock. One object serves all threads: it has no state of its own."""

    __slots__ = ("_begin", "_end")

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()
