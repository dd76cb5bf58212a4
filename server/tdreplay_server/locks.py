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

    Attributes:
        reads: counts those who read.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._mutex = threading.Lock()
        self._readers = 0
        self._writing = False
        self._waiting_readers: list[_Turn] = []
        self._waiting_writers: deque[_Turn] = deque()
        self._read, self._write = Guard(self._begin_read, self._end_read), Guard(self._begin_write, self._end_write)

    def read(self) -> Guard:
        """For ``with``: holds the lock as one of the readers."""
        return self._read

    def write(self) -> Guard:
        """For ``with``: holds the lock alone."""
        return self._write

    def _begin_read(self) -> None:
        with self._mutex:
            if not self._writing and not self._waiting_writers:
                self._readers += 1
                self.reads += 1
                return
            turn = _Turn()
            self._waiting_readers.append(turn)
        self._await(turn, self._end_read)

    def _end_read(self) -> None:
        with self._mutex:
            self._readers -= 1
            if not self._readers and self._waiting_writers:
                self._let_writer_in()

    def _begin_write(self) -> None:
        with self._mutex:
            if not self._writing and not self._readers:
                self._writing = True
                return
            turn = _Turn()
            self._waiting_writers.append(turn)
        self._await(turn, self._end_write)

    def _end_write(self) -> None:
        with self._mutex:
            self._writing = False
            if self._waiting_readers:
                self._let_readers_in()
            elif self._waiting_writers:
                self._let_writer_in()

    def _await(self, turn: _Turn, end: Callable[[], None]) -> None:
        try:
            turn.wait()
        except BaseException:  # Ctrl-C: nobody else may wait for this thread.
            if not self._withdrawn(turn):
                end()
            raise

    def _withdrawn(self, turn: _Turn) -> bool:
        """Takes a turn out of its queue; False where it has come already."""
        with self._mutex:
            if turn.came:
                return False
            queue: deque[_Turn] | list[_Turn] = self._waiting_readers if turn in self._waiting_readers else self._waiting_writers
            queue.remove(turn)
            if not self._writing and not self._waiting_writers:
                self._let_readers_in()
            return True

    def _let_writer_in(self) -> None:
        self._writing = True
        self._waiting_writers.popleft().come()

    def _let_readers_in(self) -> None:
        waiting, self._waiting_readers = self._waiting_readers, []
        self._readers += len(waiting)
        self.reads += len(waiting)
        for turn in waiting:
            turn.come()


class _Turn:
    """What one thread waits for."""

    __slots__ = ("_gate", "came")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self.came = False

    def wait(self) -> None:
        self._gate.acquire()

    def come(self) -> None:
        self.came = True
        self._gate.release()


class Guard:
    """For ``with``: holds the lock. One object serves all threads: it has no state of its own."""

    __slots__ = ("_begin", "_end")

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()
