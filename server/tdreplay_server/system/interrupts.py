"""Threads of users may be interrupted wherever they are (Ctrl-C), also where they have just taken a lock, or are about to give it back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Calls", "lets_go"]

P = ParamSpec("P")
R = TypeVar("R")


class _Holder(Protocol):
    def let_go(self) -> None:
        """Gives back the locks that this thread holds."""


H = TypeVar("H", bound=_Holder)


def lets_go(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """`method`, made to give back all locks that its thread holds when it ends with an error, wherever the error came from."""

    @wraps(method)
    def whole(self: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            self.let_go()
            raise

    return whole


class Calls:
    """The calls that run now, one a thread, each for as long as a ``with`` lasts. Knows whether one was interrupted.

    A second interrupt may come before the first one is noted. Then the thread's next call notes it.

    Attributes:
        interrupted: Whether one was interrupted since this was last set to False.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._threads: set[int] = set()

    @property
    def any(self) -> bool:
        """Whether one runs, or was interrupted and is not noted yet."""
        return bool(self._threads)

    def look(self) -> None:
        """Notes a call of this thread that ended unnoticed. To be called outside of calls."""
        thread = threading.get_ident()
        if thread in self._threads:
            self.interrupted = True
            self._threads.discard(thread)

    def __enter__(self) -> None:
        self.look()
        self._threads.add(threading.get_ident())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            self.interrupted = True
        self._threads.discard(threading.get_ident())
