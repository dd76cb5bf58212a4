"""Methods of asyncio that have the arguments and the docstrings of the sync ones: they are taken from these, so that the two cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from tdreplay_client.aio.threads import Workers, outcome

__all__ = ["arguments_of", "in_new_thread", "in_thread"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def arguments_of(method: Callable[Concatenate[Any, P], object]) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Gives a method the arguments of a sync one, for mypy, `help` and `inspect.signature`, and its docstring. What it has of its own comes first."""

    def taking(own: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        own.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
        own.__doc__ = "\n\n".join(filter(None, (inspect.getdoc(own), inspect.getdoc(method))))
        return own

    return taking


def in_thread(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The coroutine function that has a sync method carried out in a thread, by `_call` of its object."""

    @arguments_of(method)
    async def call(self: Any, *arguments: Any, **options: Any) -> T:
        result: T = await self._call(method, *arguments, **options)
        return result

    call.__name__, call.__module__ = method.__name__, method.__module__
    return call


def in_new_thread(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The coroutine function that has a sync function carried out in a thread of its own."""

    async def call(*arguments: P.args, **options: P.kwargs) -> T:
        thread = Workers(1, function.__name__)
        future = thread.submit(partial(function, *arguments, **options))
        thread.close()
        return await outcome(future)

    call.__name__, call.__module__, call.__doc__ = function.__name__, function.__module__, function.__doc__
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call
