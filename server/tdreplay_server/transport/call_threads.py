"""The threads in which calls are served: each is started when it is needed, and ends when it was not needed for a while."""

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
"""After which a thread ends that has nothing to do."""

Work: TypeAlias = Callable[[], None]


class CallThreads(ThreadPoolExecutor):
    """A pool that grows and shrinks: the standard library's, which gRPC asks for, keeps every thread that it started.

    The thread that was idle last gets the next work, so that those that are not needed stay idle until they end.

    Args:
        most: how many threads there may be. Where they are all taken, or the system allows no more, work waits for one of them.
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
        """As in the standard library. It does not raise for want of a thread.

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
            del work  # What a call held is free while its thread waits.
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
        """What a seat was given in the last moment; else it is left."""
        with self._mutex:
            if seat in self._idle:
                self._idle.remove(seat)
            if seat.work is None:
                self._started -= 1
            return seat.work

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads, each when it has nothing to do. It does not wait for them: a call that a client holds up would keep it waiting."""
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
        """What it is given within so many seconds; None: nothing."""
        self._gate.acquire(timeout=seconds)
        return self.work


def _done(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is the future's, as in the standard library.
        future.set_exception(error)
