"""The answers of a streaming call, and the thread that watches over their deadlines."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grpc

from tdreplay.errors import ReplayError, ServerUnavailableError
from tdreplay.processes import Owner, keep_in_forks
from tdreplay_client.transport.retry_budget import GRACE_SECONDS, RetryBudget
from tdreplay_client.transport.threads import interrupt_behind, note_end, started

__all__ = ["Answers", "close_watchdog", "end_call"]

NOTICE_SECONDS = 0.2


class ConnectionLike(Protocol):
    """What answers need of the connection over which they come.

    Attributes:
        owner: the process that may use it.
        timeout: seconds that an answer may take.
        returns: how often the server came back after it was away.
    """

    owner: Owner
    timeout: float
    returns: int

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def wait(self, seconds: float) -> None:
        """Waits for so long, or until it is closed."""

    def release_locks(self, call: Any) -> None:
        """Gives back the locks of a call that this thread still has."""

    def error(self, error: Any) -> ReplayError:
        """The error that a call which gRPC ended with `error` raises."""

    def lost_error(self, how: str) -> ReplayError:
        """The error for a call that the server ended before its time."""

    def late_error(self) -> ReplayError:
        """The error for an answer that did not come."""


class Answers(Iterator[Any]):
    """The answers of a streaming call. Closing it ends the call.

    Attributes:
        budget: the time that the next answer may take; each answer but an `offer` renews it. None: the connection's timeout, from when the answer
            is awaited.
    """

    def __init__(self, call: Any, connection: ConnectionLike, budget: RetryBudget | None) -> None:
        self._call, self._connection, self.budget, self._returns = call, connection, budget, connection.returns
        self._deadline: float | None = None
        self._overdue: float | None = None  # The deadline that had passed when the time was looked at last.
        self._late = self._closed = False
        keep_in_forks(self)
        _watchdog.watch(self)

    def __next__(self) -> Any:
        answer = self._awaited(self._call.__next__)
        if self.budget is not None:
            self.budget.answered()
        return answer

    def offer(self) -> Any:
        """The first answer, where it only says how the others come. It renews no budget: what the call is made for may still have to wait."""
        return self._awaited(self._call.__next__)

    def opened(self) -> None:
        """Waits until the server accepted the call, or raises the error with which it refused it."""
        self._awaited(self._call.initial_metadata)
        if not self.active and self._awaited(self._call.code) is not grpc.StatusCode.OK:
            raise self._failure(self._call)

    def note_end(self) -> None:
        """Makes the thread known in which gRPC ends this call; see `threads`."""
        try:
            note_end(self._call.add_callback)
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self._connection.release_locks(self._call)
            raise interrupt_behind(error) from None

    def _awaited(self, step: Callable[[], Any]) -> Any:
        self._deadline = time.monotonic() + self._connection.timeout if self.budget is None else self.budget.until
        try:
            return step()
        except grpc.RpcError as error:
            raise self._failure(error) from None
        except StopIteration:
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self._connection.release_locks(self._call)
            raise interrupt_behind(error) from None
        finally:
            self._deadline = None

    def without_deadline(self) -> Iterator[Any]:
        """The answers, however long each takes: for a thread that reads ahead. The thread that takes what was read watches the time."""
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: Any) -> ReplayError:
        # gRPC raises the call itself, and with its traceback the call would hold all that its readers' frames hold, shared memory too.
        error.__traceback__ = None
        found = self._connection.late_error() if self._late else self._connection.error(error)
        if isinstance(found, ServerUnavailableError):
            found.is_past = self._returns != self._connection.returns
        return found

    def end_at(self, until: float) -> None:
        """Sets the moment (of time.monotonic) at which the call is cancelled, whatever it answers until then."""
        self._deadline = until

    def cancel_if_late(self, now: float) -> None:
        """Cancels the call where an answer is overdue for the second time. The first time, this process may have stood still."""
        deadline = self._deadline
        if deadline is None or now <= deadline:
            self._overdue = None
        elif self._overdue != deadline:
            self._overdue = deadline
        else:
            self._late = True
            self._call.cancel()

    def check_alive(self) -> None:
        """Passes where the call is still alive after a moment, which is long enough to notice the end of a process on this host.

        Raises:
            ServerUnavailableError: it does not.
        """
        end = time.monotonic() + NOTICE_SECONDS
        while self.active and time.monotonic() < end:
            self._connection.wait(NOTICE_SECONDS / 20)
        if not self.active:
            raise self._connection.lost_error("was lost")

    @property
    def active(self) -> bool:
        """Whether the call goes on, as far as is known here."""
        try:
            active: bool = self._call.is_active()
        except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
            self._connection.release_locks(self._call)
            raise interrupt_behind(error) from None
        return active

    @property
    def closed(self) -> bool:
        """Whether nobody waits for an answer any more, because the call or its connection was closed."""
        return self._closed or self._connection.closed

    def close(self) -> None:
        """Ends the call. Closing twice is allowed; in a fork of the process that made it nothing happens."""
        if self._connection.owner.is_here:
            self._closed = True
            try:
                self._call.cancel()
            except BaseException as error:  # noqa: BLE001 - it is raised again, or the interrupt behind it.
                self._connection.release_locks(self._call)
                self._call.cancel()
                raise interrupt_behind(error) from None


def end_call(requests: queue.SimpleQueue[Any], answers: Answers) -> None:
    """Ends a call. It waits for nothing: as a finalizer it may run in any thread, also in the one that watches over deadlines."""
    requests.put(None)
    answers.close()


class _Watchdog:
    """One thread of the process, which cancels streaming calls whose next answer is overdue, as long as there are streaming calls.

    gRPC has deadlines for whole calls only, and a stream may last for days.
    """

    def __init__(self) -> None:
        self._answers: weakref.WeakSet[Answers] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def watch(self, answers: Answers) -> None:
        with self._lock:
            self._answers.add(answers)
            if self._thread is None or not self._thread.is_alive():  # An interrupt may have come before it was started.
                self._thread = threading.Thread(target=self._run, name="tdreplay-deadlines", daemon=True)
                started(self._thread)

    def _run(self) -> None:
        while not self._closed.wait(GRACE_SECONDS):
            with self._lock:
                watched = [answers for answers in self._answers if not answers.closed]
                if not watched:
                    self._thread = None
                    return
            now = time.monotonic()
            for answers in watched:
                answers.cancel_if_late(now)
            del watched, answers

    def close(self) -> None:
        self._closed.set()


_watchdog = _Watchdog()


def close_watchdog() -> None:
    """Ends the watch, as the interpreter exits."""
    _watchdog.close()


def _watch_anew() -> None:
    """A fork has not got the thread, and its lock may be held for ever."""
    global _watchdog
    _watchdog = _Watchdog()


os.register_at_fork(after_in_child=_watch_anew)
