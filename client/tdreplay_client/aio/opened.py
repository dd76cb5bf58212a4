"""What the asyncio buffer, its streams and its writers have in common: a sync object that is opened in a thread, and called in threads."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from tdreplay.errors import FailedPreconditionError
from tdreplay.processes import Owner
from tdreplay_client.aio.threads import Opening, Workers, outcome

__all__ = ["Opened"]

log = logging.getLogger("tdreplay")
LONGEST_TURN = 0.001
"""Seconds after which calls that wait for nothing let other tasks run."""
C = TypeVar("C")
T = TypeVar("T")


class Opened(Generic[C]):
    """An object whose calls are carried out by a sync one, in threads.

    Await it, or use it in ``async with``, to open it; else its first call does. It belongs to no event loop, and to the process that made it.

    Args:
        owner: the process.
        opening: opens the sync object.
        what: its name in messages.
    """

    def __init__(self, owner: Owner, opening: Opening[C], what: str) -> None:
        self._owner, self._opening, self._what = owner, opening, what
        self._ending: Future[None] | None = None
        self._yielded = time.monotonic()

    @abstractmethod
    def _workers(self, name: str) -> Workers:
        """The threads in which the method of this name is carried out."""

    async def _call(self, method: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        future = self._submit(method, *arguments, **options)
        try:
            return await outcome(future)
        except asyncio.CancelledError:
            self._log_loss_of(future, method.__name__)
            raise

    def _log_loss_of(self, future: Future[Any], name: str) -> None:
        """Sees to it that the log counts the rows that a call does not store, for which nobody waits any more."""
        future.add_done_callback(partial(_log_lost_rows, f"{name} of {self._what}"))

    async def _let_others_run(self) -> None:
        """Gives the event loop to other tasks, where calls that waited for nothing had it for long."""
        if time.monotonic() - self._yielded > LONGEST_TURN:
            await asyncio.sleep(0)
            self._yielded = time.monotonic()

    def _submit(self, method: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        self._owner.check()
        return self._workers(method.__name__).submit(partial(_called, self._opening, method, arguments, options))

    async def _open(self) -> Self:
        if self._opening.made is None:
            await self._call(_itself)
        return self

    @property
    def _made(self) -> C:
        """The sync object, once it is open."""
        if self._opening.made is None:
            raise FailedPreconditionError(f"{self._what} is not open yet: await it, or use it in 'async with'")
        return self._opening.made

    def _end_with(self, close: Callable[[C], object]) -> Future[None]:
        """Has the sync object closed in a thread of its own, because those that there are may be busy: now, or once it is open."""
        if self._ending is None:
            closer = Workers(1, self._what)
            self._ending = closer.submit(partial(self._opening.close, close))
            closer.close()
        return self._ending

    @abstractmethod
    async def close(self) -> None:
        """Ends it. Closing twice is allowed; in a fork of its process nothing happens."""

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


def _called(opening: Opening[C], method: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any]) -> T:
    return method(opening.get(), *arguments, **options)


def _log_lost_rows(what: str, future: Future[Any]) -> None:
    """Counts the rows that a call did not store after nobody waited for it any more."""
    rows = None if future.cancelled() else getattr(future.exception(), "rows", None)
    if rows is not None:
        log.warning("%s was cancelled, and did not store %d rows: %s", what, len(rows), future.exception())


def _itself(made: C) -> None:
    """Opens it: nothing else is to be done."""
