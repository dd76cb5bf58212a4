"""Threads of users may be interrupted wherever they are (Ctrl-C), also where they have just taken a lock, or are about to give it back."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["lets_go"]

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
