"""The threads that serve calls. Each starts when it is needed, and ends when nothing has needed it for a while."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from tdreplay_server.system.logs import log

__all__ = ["CallThreads"]

IDLE_SECONDS = 5.0
"""How long a thread stays that has nothing to do."""

Work: TypeAlias = Callable[[], None]


class CallThreads(ThreadPoolExecutor):
    """A pool that grows and shrinks: the standard library's, which gRPC asks for, keeps every thread that it started.

    The thread that became idle last gets the next work. So the threads that are not needed stay idle until they end.

    Args:
        most: the largest number of threads. Where all of them work, or the system allows no more, work waits for one of them.
        name: the names of the threads begin with it.
    """

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most)
        self._most, self._name, self._numbers = most, name, itertools.count()
        self._mutex = threading.Lock()
        self._started = 0
        self._over = False
        self._idle: list[_Seat] = []
        self._waiting: deque[Work] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As in the standard library, but where no thread can be started it raises no error, and the work waits.

        gRPC calls it in the one thread that takes all calls in: an error would end that thread, and the server would answer nobody any more.
        """
        future: Future[Any] = Future()
        work = partial(_done, future, partial(fn, *args, **kwargs))
        with self._mutex:
            if self._idle:
                self._idle.pop().give(work)
            elif self._started >= self._most or not self._start(work):
                self._waiting.append(work)
        return future

    def _start(self, work: Work) -> bool:
        """Whether a thread could be started for some work."""
        thread = threading.Thread(target=self._serve, args=(work,), name=f"{self._name}_{next(self._numbers)}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("no thread can be started for a call, so it waits for another one to end", threads=self._started, error=str(error))
            return False
        self._started += 1
        return True

    def _serve(self, work: Work | None) -> None:
        while work is not None:
            work()
            del work  # Else a thread that waits would keep what its last call held.
            work = self._next()

    def _next(self) -> Work | None:
        """The next work of this thread; None: it is to end."""
        with self._mutex:
            if self._waiting:
                return self._waiting.popleft()
            if self._over:
                self._started -= 1
                return None
            seat = _Seat()
            self._idle.append(seat)
        return seat.given(IDLE_SECONDS) or self._left(seat)

    def _left(self, seat: _Seat) -> Work | None:
        """The work that a seat got at the last moment. None: it got none, and its thread ends."""
        with self._mutex:
            if seat in self._idle:
                self._idle.remove(seat)
            if seat.work is None:
                self._started -= 1
            return seat.work

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, each when it has nothing to do. It does not wait for them, because a client may hold up a call for long."""
        with self._mutex:
            self._over = True
            idle, self._idle = self._idle, []
        for seat in idle:
            seat.give(None)


class _Seat:
    """Where a thread waits for work."""

    __slots__ = ("_gate", "work")

    def __init__(self) -> None:
        self.work: Work | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def give(self, work: Work | None) -> None:
        self.work = work
        self._gate.release()

    def given(self, seconds: float) -> Work | None:
        """The work that comes within so many seconds; None: none came."""
        self._gate.acquire(timeout=seconds)
        return self.work


def _done(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is the future's, as in the standard library.
        future.set_exception(error)
