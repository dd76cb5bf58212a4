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
    """Hands what several threads bring to `write`, in groups, in the order in which they came. One thread writes at a time.

    Args:
        write: takes a group of at least one item. What it raises is raised in the thread that called it; it has to tell the others by their items.
        joins: whether an item may go into a group that has some already.
    """

    def __init__(self, write: Callable[[list[T]], None], joins: Callable[[list[T], T], bool]) -> None:
        self._write, self._joins = write, joins
        self._mutex = threading.Lock()
        self._busy = False
        self._waiting: deque[_Place[T]] = deque()

    def put(self, item: T) -> None:
        """Returns when `item` was written, by this thread or by another one."""
        place = self._await(item)
        if place is not None and place.written:
            return
        items, others = self._group(item) if self._waiting else ([item], [])
        try:
            self._write(items)
        finally:
            self._end(others)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps all writes out."""
        self._await(None)
        try:
            yield
        finally:
            self._end([])

    def _await(self, item: T | None) -> _Place[T] | None:
        """Returns when this thread may write, or when another one has written for it, as its place says where it had to wait."""
        with self._mutex:
            if not self._busy:
                self._busy = True
                return None
            place = _Place(item)
            self._waiting.append(place)
        try:
            place.gate.acquire()
        except BaseException:  # Ctrl-C: nobody may wait for this thread.
            self._withdraw(place)
            raise
        return place

    def _withdraw(self, place: _Place[T]) -> None:
        with self._mutex:
            waits = place in self._waiting
            if waits:
                self._waiting.remove(place)
        if not waits:
            place.gate.acquire()  # It is being written, or its turn is about to come.
            if not place.written:
                self._end([])

    def _group(self, first: T) -> tuple[list[T], list[_Place[T]]]:
        """The first item and those that came after it, as long as they may join, and the places of these others."""
        items, others = [first], []
        with self._mutex:
            while self._waiting and (item := self._waiting[0].item) is not None and self._joins(items, item):
                items.append(item)
                others.append(self._waiting.popleft())
        return items, others

    def _end(self, written: list[_Place[T]]) -> None:
        """Wakes those for whom was written, and the next thread that is to write."""
        for place in written:
            place.written = True
            place.gate.release()
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().gate.release()
            else:
                self._busy = False


class _Place(Generic[T]):
    """What one thread brings, and waits for. Without an item it only waits for its turn."""

    __slots__ = ("gate", "item", "written")

    def __init__(self, item: T | None) -> None:
        self.item = item
        self.written = False
        self.gate = threading.Lock()
        self.gate.acquire()
