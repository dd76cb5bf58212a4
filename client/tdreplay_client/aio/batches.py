"""Streams and epochs for asyncio: the sync ones, each in a thread of its own."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase

from tdreplay.copying import OfOneProcess
from tdreplay.epochs import Epochs, Token
from tdreplay.errors import FailedPreconditionError
from tdreplay.priorities import Updated
from tdreplay.processes import Owner
from tdreplay.progress import Progress, ProgressBar
from tdreplay_client.aio.opened import Opened
from tdreplay_client.aio.signatures import arguments_of
from tdreplay_client.aio.threads import Opening, Workers, in_loop, outcome
from tdreplay_client.reading.epochs import RemoteEpochs
from tdreplay_client.reading.stream import BatchStream

__all__ = ["AsyncBatchStream", "AsyncEpochs"]

SMALL_BYTES = 256 << 10
"""Batches of so many bytes are taken in the event loop, where they came already: that takes 0.1 ms."""
S = TypeVar("S", bound="BatchStream | Epochs")


class _Step:
    """A step of a sync iterator, in its thread.

    Attributes:
        future: of its batch; None at the end.
        token: where the iterator stood before it; None where that is not known, because it did not begin, or has no place that could be said.
    """

    future: Future[TensorDict | None]
    token: dict[str, Any] | None = None


class _AsyncBatches(OfOneProcess, Opened[S], AsyncIterator[TensorDict]):
    """What streams and epochs have in common.

    A step that is cancelled loses no batch: the batch that it waited for is the one of the next step, and `state_dict` says the place before it.
    """

    def __init__(self, owner: Owner, opening: Opening[S], workers: Workers, what: str) -> None:
        super().__init__(owner, opening, what)
        self._thread = workers
        self._unclaimed: deque[_Step] = deque()
        self._over = False
        weakref.finalize(self, _forget, owner, opening, what).atexit = False  # The exit closes the connections.

    def _workers(self, name: str) -> Workers:
        return self._thread

    async def __anext__(self) -> TensorDict:
        self._owner.check()
        if self._over:
            raise StopAsyncIteration
        step = self._unclaimed.popleft() if self._unclaimed else self._begun()
        try:
            batch = await outcome(step.future)
        except asyncio.CancelledError:
            if not step.future.cancelled():
                self._unclaimed.appendleft(step)
            raise
        if batch is None:
            raise StopAsyncIteration
        return batch

    def _begun(self) -> _Step:
        step = _Step()
        step.future = self._thread.submit(partial(_step, self._opening, step))
        return step

    async def _token_before(self) -> dict[str, Any] | None:
        """Where it stood before the first step whose batch nobody took. None: all were taken."""
        if not self._unclaimed:
            return None
        step = self._unclaimed[0]
        if step.token is None:
            await asyncio.wait([asyncio.ensure_future(_over(step.future))])
        return step.token

    async def close(self) -> None:
        """As the sync one. A step that waits ends, and gives no batch. Closing twice is allowed; in a fork of its process nothing happens."""
        if not self._owner.is_here:
            return
        self._over = True
        self._unclaimed.clear()
        ending = self._end_with(_close)
        self._thread.close()
        await outcome(ending, certain=True)


class AsyncBatchStream(_AsyncBatches[BatchStream]):
    """Random batches without end: `BatchStream` for asyncio. ``async with buffer.stream(256) as batches: async for batch in batches: ...``.

    Its steps are carried out in a thread of its own, in the order in which they were asked for. What is said of `BatchStream` holds here, too.
    """

    _instead = "it belongs to a connection of this process. Give the other process the buffer, and open a stream there"

    def __init__(self, owner: Owner, opening: Opening[BatchStream], workers: Workers, what: str) -> None:
        super().__init__(owner, opening, workers, what)
        self._updates = Workers(1, what)
        self._small: bool | None = None  # Its batches; None: there was none yet.

    async def __anext__(self) -> TensorDict:
        await self._let_others_run()
        stream = self._opening.made
        if stream is not None and self._small and not self._over and not self._unclaimed and self._thread.idle and stream.gives_at_once:
            batch = next(stream, None)  # A thread would take as long again.
        else:
            batch = await super().__anext__()
        if batch is None:
            raise StopAsyncIteration
        if self._small is None:
            self._small = batch.device.type == "cpu" and batch.bytes() <= SMALL_BYTES
        return batch

    def _workers(self, name: str) -> Workers:
        return self._updates if name == "update_priorities" else self._thread

    @property
    def shared(self) -> bool:
        """Whether batches come through memory that is shared with the server."""
        return self._made.shared

    @property
    def updated(self) -> Updated:
        """As of `BatchStream`: what became of the rows of its updates, as far as the server has said."""
        return self._made.updated

    @arguments_of(BatchStream.update_priorities)
    async def update_priorities(self, batch: TensorDictBase, td_error: Any) -> None:
        on_device = isinstance(td_error, torch.Tensor) and td_error.device.type != "cpu"  # It waits for the device.
        stream = self._opening.made
        if stream is None or on_device or not self._updates.idle:
            await self._call(BatchStream.update_priorities, batch, td_error)
        else:
            stream.update_priorities(batch, td_error)

    @arguments_of(BatchStream.state_dict)
    async def state_dict(self) -> dict[str, Any]:
        token = await self._token_before()
        return await self._call(BatchStream.state_dict) if token is None else token

    @arguments_of(BatchStream.load_state_dict)
    async def load_state_dict(self, token: Mapping[str, Any]) -> None:
        await self._call(BatchStream.load_state_dict, token)
        self._unclaimed.clear()

    @arguments_of(BatchStream.close)
    async def close(self) -> None:
        self._updates.close()
        await super().close()


class AsyncEpochs(_AsyncBatches[Epochs]):
    """The batches of some epochs, in turn: `Epochs` for asyncio. ``async for batch in buffer.epochs(64, n_epochs=2): ...``.

    Its steps are carried out in a thread of its own. What is said of `Epochs` holds here, too; but once it is closed it takes no token any more.
    """

    _instead = "it belongs to a buffer of this process. Give the other process its state_dict()"

    @property
    def shared(self) -> bool:
        """Whether batches come through memory that is shared with the server."""
        made = self._made
        return isinstance(made, RemoteEpochs) and made.shared

    @property
    def epoch(self) -> int:
        """The number of the epoch of the next batch, from 0 up. At the end it is the number of epochs."""
        return self._said("epoch", self._made.epoch)

    @property
    def overwritten(self) -> int:
        """As of `Epochs`: how many rows were overwritten before they came."""
        return self._said("overwritten", self._made.overwritten)

    def _said(self, name: str, now: int) -> int:
        token = self._unclaimed[0].token if self._unclaimed else None
        return now if token is None else int(token[name])

    @arguments_of(Epochs.state_dict)
    async def state_dict(self) -> Token:
        token = await self._token_before()
        return await self._call(Epochs.state_dict) if token is None else token

    @arguments_of(Epochs.load_state_dict)
    async def load_state_dict(self, token: Mapping[str, Any]) -> None:
        await self._call(Epochs.load_state_dict, token)
        self._unclaimed.clear()

    @arguments_of(Epochs.report_to)
    async def report_to(self, progress: Progress | None) -> None:
        """It is told in this event loop."""
        await self._call(Epochs.report_to, in_loop(progress) if progress is not None and not isinstance(progress, ProgressBar) else progress)

    @arguments_of(Epochs.close)
    async def close(self) -> None:
        """It takes no token from then on."""
        await super().close()


def _step(opening: Opening[S], step: _Step) -> TensorDict | None:
    """The next batch of a sync iterator, once it is noted where it stood before."""
    iterator = opening.get()
    step.token = _place(iterator)
    return next(iterator, None)


def _place(iterator: BatchStream | Epochs) -> dict[str, Any] | None:
    try:
        return iterator.state_dict()
    except FailedPreconditionError:  # It has no seed, so its batches cannot be drawn again.
        return None


async def _over(future: Future[Any]) -> None:
    await outcome(future, certain=True)


def _close(iterator: BatchStream | Epochs) -> None:
    iterator.close()


def _forget(owner: Owner, opening: Opening[S], what: str) -> None:
    """Ends the call of an iterator that nothing refers to, in a thread: a step of it may still wait."""
    if owner.is_here and opening.made is not None:
        closer = Workers(1, what)
        closer.submit(partial(opening.close, _close))
        closer.close()
