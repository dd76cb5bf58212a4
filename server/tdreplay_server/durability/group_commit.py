"""Group commit: of the threads that have something to write, one writes for all that wait.

What a write costs whatever its size, such as a transaction of the journal and a turn at the lock, is then paid once for the group. Databases write
their logs like this (DeWitt and others, "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984, section 5.2).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["GroupCommit"]

T = TypeVar("T")


class GroupCommit(Generic[T]):
    """Hands the items of several threads to `write`, in groups, in the order in which they came. One thread writes at a time.

    A thread may be interrupted (Ctrl-C) wherever it calls something. So each change of the state here is a few assignments with one call at the end.
    `let_go` does what an interrupt left undone.

    Args:
        write: Takes a group of at least one item. What it raises is raised in the thread that called it. The others learn of it by their items.
        joins: Whether an item may go into a group that has some already.
    """

    def __init__(self, write: Callable[[list[T]], None], joins: Callable[[list[T], T], bool]) -> None:
        self._write, self._joins = write, joins
        self._mutex = threading.Lock()
        self._leader: int | None = None  # The thread that may write.
        self._others: list[_Place[T]] = []  # The threads for which it writes as well.
        self._waiting: deque[_Place[T]] = deque()  # Places of threads that gave up stay in it for a while.

    def put(self, item: T) -> None:
        """Returns when `item` was written, by this thread or by another one."""
        try:
            if self._await(item):
                self._write(self._group(item) if self._waiting else [item])
        finally:
            self._end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps all writes out."""
        try:
            self._await(None)
            yield
        finally:
            self._end()

    def let_go(self) -> None:
        """Sees to it that nobody waits for this thread, which was interrupted."""
        thread = threading.get_ident()
        with self._mutex:
            for place in self._waiting:
                place.waits = place.waits and place.thread != thread
        self._end()

    def _await(self, item: T | None) -> bool:
        """Returns True when this thread may write, and False when another one has written for it."""
        thread = threading.get_ident()
        with self._mutex:
            if self._leader is None or self._leader == thread:  # This thread leads still if it was interrupted on its way out.
                self._leader = thread
                return True
            place = _Place(item, thread)
            self._waiting.append(place)
        try:
            place.gate.acquire()
        except BaseException:  # Ctrl-C.
            self._withdraw(place)
            raise
        return not place.written

    def _withdraw(self, place: _Place[T]) -> None:
        """Ends the wait of this thread, which was interrupted. If another thread is writing its item, it waits for that."""
        with self._mutex:
            waits, place.waits = place.waits, False
            leads = self._leader == place.thread
        if not (waits or leads or place.written):
            place.gate.acquire()

    def _group(self, first: T) -> list[T]:
        """The first item and those that came after it, as long as they may join."""
        items = [first]
        with self._mutex:
            while self._waiting:
                other = self._waiting[0]
                if other.waits:
                    if other.item is None or not self._joins(items, other.item):
                        break
                    items.append(other.item)
                    other.waits = False
                    self._others.append(other)
                self._waiting.popleft()
        return items

    def _end(self) -> None:
        """If this thread leads, it leads no more: wakes the threads for which it wrote, and the next leader."""
        if self._leader != threading.get_ident():
            return
        with self._mutex:
            while self._others:
                place = self._others[-1]
                if not place.written:
                    place.written = True
                    place.gate.release()
                self._others.pop()
            self._choose()

    def _choose(self) -> None:
        while self._waiting:
            place = self._waiting[0]
            if place.waits:
                place.waits = False
                self._leader = place.thread
                place.gate.release()
                return
            self._waiting.popleft()
        self._leader = None


class _Place(Generic[T]):
    """Where a thread waits with its item. Without an item it only waits for its turn.

    Attributes:
        waits: Whether it is still in the queue, so that its item may go into a group or its turn may come.
        written: Whether another thread has written its item.
    """

    __slots__ = ("gate", "item", "thread", "waits", "written")

    def __init__(self, item: T | None, thread: int) -> None:
        self.item, self.thread = item, thread
        self.waits, self.written = True, False
        self.gate = threading.Lock()
        self.gate.acquire()
