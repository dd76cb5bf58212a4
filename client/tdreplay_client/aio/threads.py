"""Threads in which calls wait, so that the event loop does not."""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from tdreplay.errors import ClosedError
from tdreplay_client.transport.threads import start_reader

__all__ = ["Opening", "Workers", "in_loop", "outcome"]

T = TypeVar("T")


class _Job(NamedTuple):
    """A call, and where its result goes."""

    call: Callable[[], Any]
    future: Future[Any]


class Workers:
    """Threads that carry out calls, each begun in the order in which the calls came. They end with `close`, or when nothing refers to this any more.

    They are daemons: the exit of the interpreter closes the connections, which ends what the threads wait for.

    Args:
        most: the most threads. They are started as they are needed, and stay.
        what: what they work for, in messages.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what, self._threads, self._closed = most, what, 0, False
        self._submitted = 0
        self._lock, self._idle = threading.Lock(), threading.Semaphore(0)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done = [0] * most  # Of each thread.
        self._end = weakref.finalize(self, _end, self._jobs, most)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Has a thread carry out a call.

        Raises:
            ClosedError: no calls are taken any more.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._what} is closed")
            self._jobs.put(_Job(call, future))
            self._submitted += 1
            if not self._idle.acquire(blocking=False) and self._threads < self._most:
                self._threads += 1
                start_reader(_work, self._jobs, self._idle, self._done, self._threads - 1)
        return future

    @property
    def idle(self) -> bool:
        """Whether all calls that came are over."""
        return self._submitted == sum(self._done)

    def close(self) -> None:
        """Ends the threads, each after the call in which it is, and the calls that came before. It waits for nothing. Closing twice is allowed."""
        with self._lock:
            self._closed = True
        self._end()


def _work(jobs: queue.SimpleQueue[_Job | None], idle: threading.Semaphore, done: list[int], number: int) -> None:
    """Carries out calls until None comes."""
    while (job := jobs.get()) is not None:
        if job.future.set_running_or_notify_cancel():
            _carry_out(job)
        del job  # With it what the call and its result hold, such as a batch in shared memory.
        done[number] += 1
        idle.release()


def _carry_out(job: _Job) -> None:
    try:
        result = job.call()
    except BaseException as error:  # noqa: BLE001 - whoever awaits the call raises it.
        job.future.set_exception(error)
    else:
        job.future.set_result(result)


def _end(jobs: queue.SimpleQueue[_Job | None], threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


async def outcome(future: Future[T], *, certain: bool = False) -> T:
    """The result of a call in a thread.

    Where the wait for it is cancelled, a call that began goes on. One that did not begin never does, unless it is `certain`.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(partial(_tell, loop, over))
        try:
            await over
        except asyncio.CancelledError:
            if not certain:
                future.cancel()
            raise
    return future.result()


def _tell(loop: asyncio.AbstractEventLoop, over: asyncio.Future[None], _: Future[Any]) -> None:
    with suppress(RuntimeError):  # So asyncio says that the loop was closed: nobody waits any more.
        loop.call_soon_threadsafe(_note, over)


def _note(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def in_loop(told: Callable[..., object]) -> Callable[..., object]:
    """What calls a function in the event loop that runs now, from any thread, and does not wait for it."""
    tell = asyncio.get_running_loop().call_soon_threadsafe
    return lambda *arguments: tell(told, *arguments)


class Opening(Generic[T]):
    """Something that is opened when it is first needed, in a thread that needs it. The others wait, and an error is that of all who waited.

    Args:
        open_it: opens it. After an error it is called again when it is needed again.
    """

    def __init__(self, open_it: Callable[[], T]) -> None:
        self._open_it, self._lock = open_it, threading.Lock()
        self._attempt: Future[T] | None = None
        self._closed = False
        self.made: T | None = None

    def get(self) -> T:
        """The opened thing. Blocks while it is opened.

        Raises:
            ClosedError: it was closed.
        """
        if self.made is not None:
            return self.made
        with self._lock:
            attempt, mine = self._attempt, self._attempt is None
            if attempt is None:
                if self._closed:
                    raise ClosedError("it is closed")
                self._attempt = attempt = Future()
        if mine:
            self._try(attempt)
        return attempt.result()

    def is_made(self, made: T) -> None:
        """Notes that it is open already."""
        self.made, self._attempt = made, Future()
        self._attempt.set_result(made)

    def close(self, close_it: Callable[[T], object]) -> None:
        """Closes what is open. Where a thread opens it now, that thread closes it, and this does not wait."""
        with self._lock:
            self._closed, attempt = True, self._attempt
        if attempt is None:
            return
        if attempt.done():
            _close_made(close_it, attempt)
        else:
            attempt.add_done_callback(partial(_close_made, close_it))

    def _try(self, attempt: Future[T]) -> None:
        try:
            self.made = self._open_it()
        except BaseException as error:  # noqa: BLE001 - all who wait raise it.
            self._attempt = None
            attempt.set_exception(error)
        else:
            attempt.set_result(self.made)


def _close_made(close_it: Callable[[T], object], attempt: Future[T]) -> None:
    if attempt.exception() is None:
        close_it(attempt.result())
