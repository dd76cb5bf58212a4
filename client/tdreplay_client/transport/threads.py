"""Threads that are inside gRPC. One that is still there when the interpreter goes would abort the process, so the exit waits for them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

__all__ = ["await_call_threads", "in_own_thread", "interrupt_behind", "note_end", "start_reader", "started"]

T = TypeVar("T")

_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_running: set[threading.Event] = set()
"""The calls that did not end. Single operations of a set are safe in threads."""


def start_reader(work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Starts a thread that reads a call's answers. It is awaited when the interpreter exits."""
    reader = threading.Thread(target=work, args=arguments, name="tdreplay-reader", daemon=True)
    _threads.add(reader)
    return started(reader)


def started(thread: threading.Thread) -> threading.Thread:
    """Starts a thread, and gives it back. Ctrl-C meanwhile is a KeyboardInterrupt, whatever the locks of `threading` make of it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise interrupt_behind(error) from None
    return thread


def interrupt_behind(error: BaseException) -> BaseException:
    """The interrupt that is behind an error of a lock (given back twice, because Ctrl-C came as it was given back); any other error as it is."""
    return error.__context__ if isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt) else error


def in_own_thread(requests: Iterator[T]) -> Iterator[T]:
    """The requests of a call. gRPC takes them in a thread of its own, which makes itself known here."""
    _threads.add(threading.current_thread())
    yield from requests


def note_end(add_callback: Callable[[Callable[[], None]], bool]) -> None:
    """Makes the thread known in which gRPC ends a call, given the function that adds a callback to the call."""
    ended = threading.Event()
    _running.add(ended)
    if not add_callback(partial(_end, ended)):  # It ended already.
        _running.discard(ended)


def _end(ended: threading.Event) -> None:
    _threads.add(threading.current_thread())
    _running.discard(ended)
    ended.set()


def await_call_threads(seconds: float) -> None:
    """Waits for calls that are about to end, and for all threads that are known, at most for so long."""
    until = time.monotonic() + seconds
    for ended in tuple(_running):
        ended.wait(max(0.0, until - time.monotonic()))
    for thread in list(_threads):
        if thread.ident is not None and thread is not threading.current_thread():  # Without one, an interrupt came before it was started.
            thread.join(max(0.0, until - time.monotonic()))


os.register_at_fork(after_in_child=_running.clear)  # They are the parent's.
