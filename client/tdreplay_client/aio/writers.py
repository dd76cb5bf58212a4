"""Writers for asyncio: the sync ones, each in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tdreplay.copying import OfOneProcess
from tdreplay.errors import ReplayError
from tdreplay.processes import Owner
from tdreplay.rows import Row
from tdreplay.trajectory_writer import TrajectoryWriter
from tdreplay_client.aio.opened import Opened
from tdreplay_client.aio.signatures import arguments_of, in_thread
from tdreplay_client.aio.threads import Opening, Workers, outcome
from tdreplay_client.writing.writer import Writer

__all__ = ["AsyncTrajectoryWriter", "AsyncWriter"]

W = TypeVar("W", bound="Writer | TrajectoryWriter")
T = TypeVar("T")


class _AsyncWriting(OfOneProcess, Opened[W]):
    """What both writers have in common.

    Calls are carried out in a thread, in the order in which they came, whatever tasks they came from. `append` and `extend` return when their rows
    are taken: so they wait while the pipeline is full, and the event loop goes on.

    A call that is cancelled before its turn came is not carried out. One that began is: its rows are taken. What goes wrong with rows of a cancelled
    call is logged, and raised by the next call.
    """

    def __init__(self, owner: Owner, opening: Opening[W], workers: Workers, what: str) -> None:
        super().__init__(owner, opening, what)
        self._thread = workers
        self._unclaimed: list[Future[Any]] = []

    def _workers(self, name: str) -> Workers:
        return self._thread

    async def _call(self, method: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        future = self._submit(method, *arguments, **options)
        try:
            return await outcome(future)
        except asyncio.CancelledError:
            self._unclaimed.append(future)
            self._log_loss_of(future, method.__name__)
            raise
        except ReplayError:
            self._raise_unclaimed()
            raise

    async def _free(self) -> W | None:
        """The sync writer, where it takes a row at once: a thread would take five times as long. None: a thread has to, or does something now."""
        self._owner.check()
        await self._let_others_run()
        writer, at_rest = self._opening.made, self._ending is None and self._thread.idle and not self._unclaimed
        return writer if writer is not None and at_rest and writer.takes_at_once else None

    def _raise_unclaimed(self) -> None:
        """Raises the error with which rows of a cancelled call were lost, once."""
        over = [future for future in self._unclaimed if future.done()]
        self._unclaimed = [future for future in self._unclaimed if not future.done()]
        for future in over:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, ReplayError) and error.rows is not None:
                raise error

    async def _close(self, close: Callable[..., None], timeout: float | None) -> None:
        if not self._owner.is_here:
            return
        if self._ending is None:
            self._ending = self._thread.submit(lambda: self._opening.close(lambda made: close(made, timeout)))
            self._thread.close()
        await outcome(self._ending, certain=True)
        self._raise_unclaimed()


class AsyncWriter(_AsyncWriting[Writer]):
    """Appends rows to a table without waiting for each: `Writer` for asyncio. ``async with buffer.writer() as writer: await writer.append(row)``.

    What is said of `Writer` holds here, too. Calls are carried out in a thread of the writer, in the order in which they came, whatever tasks they
    came from. `append` and `extend` return when their rows are taken: they wait while the pipeline is full, and the event loop goes on.

    A call that is cancelled before its turn came is not carried out. One that began is: its rows are taken. What goes wrong with the rows of a
    cancelled call is logged, and raised by the next call.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a writer there"

    @arguments_of(Writer.append)
    async def append(self, row: Row, *, priority: float | None = None) -> None:
        writer = await self._free()
        if writer is None:
            await self._call(Writer.append, row, priority=priority)
        else:
            writer.append(row, priority=priority)

    extend = in_thread(Writer.extend)
    flush = in_thread(Writer.flush)

    @property
    def shared(self) -> bool:
        """Whether blocks go through memory that is shared with the server: False until rows were added."""
        return self._made.shared

    @property
    def is_open(self) -> bool:
        """Whether it takes rows."""
        return self._ending is None and self._made.is_open

    @arguments_of(Writer.abandon)
    async def abandon(self) -> None:
        if self._owner.is_here:
            ending = self._end_with(Writer.abandon)
            self._thread.close()
            await outcome(ending, certain=True)

    @arguments_of(Writer.close)
    async def close(self, timeout: float | None = None) -> None:
        await self._close(Writer.close, timeout)


class AsyncTrajectoryWriter(_AsyncWriting[TrajectoryWriter]):
    """Appends the steps of episodes to a table of trajectories: `TrajectoryWriter` for asyncio. Use it in one task at a time.

    What is said of `TrajectoryWriter` and of `AsyncWriter` holds here, too.
    """

    _instead = "its episodes belong to this process. Give the other process the buffer, and open a writer there"

    @arguments_of(TrajectoryWriter.append)
    async def append(self, step: Row, final: Any = None, priority: Any = None) -> None:
        writer = await self._free()
        if writer is None:
            await self._call(TrajectoryWriter.append, step, final, priority)
        else:
            writer.append(step, final, priority)

    extend = in_thread(TrajectoryWriter.extend)
    abandon = in_thread(TrajectoryWriter.abandon)
    flush = in_thread(TrajectoryWriter.flush)

    @property
    def episode_ids(self) -> npt.NDArray[np.int64]:
        """As of `TrajectoryWriter`: the episode of each environment's next step, after the calls that were carried out."""
        return self._made.episode_ids

    @arguments_of(TrajectoryWriter.close)
    async def close(self, timeout: float | None = None) -> None:
        await self._close(TrajectoryWriter.close, timeout)
