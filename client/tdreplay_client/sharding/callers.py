"""Threads that ask several shards at once."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from tdreplay.errors import ClosedError
from tdreplay_client.transport.threads import start_reader

__all__ = ["Callers"]

T = TypeVar("T")


class Callers:
    """Makes calls in threads of their own, which wait for the next one.

    Unlike those of `concurrent.futures`, they do not keep the interpreter from its end while a call waits for a server: the exit ends the calls.

    Args:
        most: The most calls that are made at once. Others wait.
    """

    def __init__(self, most: int) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        # Ctrl-C may leave locks behind: idle threads are counted by items of a queue, which has none, and the thread that has the lock may close it.
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._starting = threading.RLock()
        self._most, self._threads = most, 0
        self._end = weakref.finalize(self, self._calls.put, None)
        self._end.atexit = False

    def call(self, work: Callable[..., T], *arguments: Any, found: Future[T] | None = None) -> Future[T]:
        """Calls `work`, and gives what will be its result: `found`, where that is given. A call is not made that was cancelled before it began.

        Raises:
            ClosedError: it was closed.
        """
        found = Future() if found is None else found
        with self._starting:
            if not self._end.alive:
                raise ClosedError("the buffer is closed")
            self._calls.put((found, work, arguments))
        try:
            self._idle.get_nowait()
        except queue.Empty:
            with self._starting:
                if self._threads < self._most:
                    self._threads += 1
                    start_reader(_answer_calls, self._calls, self._idle)
        return found

    def close(self) -> None:
        """Lets the threads end, after the calls that they were given. Closing twice is allowed."""
        with self._starting:
            self._end()


_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


def _answer_calls(calls: queue.SimpleQueue[_Call | None], idle: queue.SimpleQueue[None]) -> None:
    """In a thread: makes calls until None comes, which it passes on to the next thread."""
    while (call := calls.get()) is not None:
        _answer(*call)
        del call  # Else the last result would live as long as the thread waits.
        idle.put(None)
    calls.put(None)


def _answer(found: Future[Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not found.set_running_or_notify_cancel():
        return
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001 - whoever waits for the result raises it.
        found.set_exception(error)
    else:
        found.set_result(result)
