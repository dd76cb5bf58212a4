"""Objects that belong to one process. A fork gets a copy of them, and must neither use nor end it.

A forked process has its parent's memory, but only the thread that forked. Locks that another thread held stay locked for ever, the threads that would
answer are missing, and files and sockets are the parent's. So every call on such an object first checks the process, before it takes a lock, and
fails in a fork. When a fork closes the object, drops it or exits, the parent's resources stay as they are.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from typing import Any, Protocol

from tdreplay.errors import ForkedError

__all__ = ["OwnFile", "Owner", "keep_for_ever", "keep_in_forks"]


class _Process:
    """This process. Its id is kept here, because asking the system for it takes a quarter of a microsecond."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_this = _Process()


class Owner:
    """The process that made an object.

    Args:
        what: the object's name in messages: "the buffer at HOST:PORT".
        advice: what a fork should do instead of using the object; for messages, too.
    """

    def __init__(self, what: str, advice: str = "make one of its own there") -> None:
        self._what, self._advice, self._pid = what, advice, _this.pid

    @property
    def is_here(self) -> bool:
        """Whether this process made the object."""
        return _this.pid == self._pid

    def check(self) -> None:
        """Checks that this process made the object.

        Raises:
            ForkedError: it is a fork of the process that did.
        """
        if _this.pid != self._pid:
            raise ForkedError(f"{self._what} belongs to process {self._pid}, and process {_this.pid} is a fork of it: {self._advice}")


class OwnFile:
    """An open file that forks of this process do not inherit. So its locks, and what it holds open, end with this process.

    Args:
        number: the descriptor. This object closes it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        _files.add(self)

    def close(self) -> None:
        """Closes the file. Closing twice is allowed."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)


class _Referred(Protocol):
    __weakref__: Any


def keep_in_forks(thing: _Referred) -> None:
    """Sees to it that forks of this process never destroy `thing` and what it refers to: its destruction would wait for threads that a fork lacks."""
    _kept.add(thing)


def keep_for_ever(thing: object) -> None:
    """Sees to it that an object is never destroyed, neither by the garbage collector nor when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_files: weakref.WeakSet[OwnFile] = weakref.WeakSet()
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    _this.pid = os.getpid()
    if _kept:
        # What was garbage before the fork is never collected here: calls of gRPC among it would act on threads and locks that the fork lacks, and
        # gRPC would abort the process. Garbage of its own the fork collects as before.
        gc.freeze()
    for file in list(_files):
        file.close()
    for thing in list(_kept):
        keep_for_ever(thing)


os.register_at_fork(after_in_child=_after_fork)
