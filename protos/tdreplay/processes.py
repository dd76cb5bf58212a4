"""What belongs to one process: a fork has a copy of it, and must neither use it nor end it.

A forked process has its parent's memory, but only the thread that forked. Locks that another thread held stay locked for ever, threads that were to
answer are not there, and files and sockets are the parent's own. So a forked process is told so by whatever it calls, before any lock is taken, and
what it closes, drops or leaves behind at its exit stays as it is.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol

from tdreplay.errors import ForkedError

__all__ = ["OwnFile", "Owner", "keep_for_ever", "keep_in_forks"]


class _Process:
    """This process. Its id is noted: to ask for it takes a quarter of a microsecond."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_this = _Process()


class Owner:
    """The process that made an object.

    Args:
        what: the object, for messages: "the buffer at HOST:PORT".
        advice: what a fork is told to do in place of using it.
    """

    def __init__(self, what: str, advice: str = "make one of its own there") -> None:
        self._what, self._advice, self._pid = what, advice, _this.pid

    @property
    def is_here(self) -> bool:
        """Whether it is this process."""
        return _this.pid == self._pid

    def check(self) -> None:
        """Passes in the process that made the object.

        Raises:
            ForkedError: this one is a fork of it.
        """
        if _this.pid != self._pid:
            raise ForkedError(f"{self._what} belongs to process {self._pid}, and process {_this.pid} is a fork of it: {self._advice}")


class OwnFile:
    """An open file that forks of this process do not have: what it locks, or holds open, ends with this process.

    Args:
        number: its descriptor, which is this object's to close.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        _files.add(self)

    def close(self) -> None:
        """Closes it. Closing twice is allowed."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)


class _Referred(Protocol):
    __weakref__: Any


def keep_in_forks(thing: _Referred) -> None:
    """In forks of this process, `thing` and all that it refers to is never destroyed: for what would wait for threads when it is."""
    _kept.add(thing)


def keep_for_ever(thing: object) -> None:
    """Keeps an object from being destroyed by the garbage collector, or at the interpreter's end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_files: weakref.WeakSet[OwnFile] = weakref.WeakSet()
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork() -> None:
    _this.pid = os.getpid()
    for file in list(_files):
        file.close()
    for thing in list(_kept):
        keep_for_ever(thing)


os.register_at_fork(after_in_child=_after_fork)
