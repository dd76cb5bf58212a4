"""The replay buffer over the wire, for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from functools import partial
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

import torch
from tensordict import TensorDict

from tdreplay.limits import DEFAULT_TIMEOUT, check_batch_size, check_whole
from tdreplay.processes import Owner
from tdreplay.row_wait import RowWait
from tdreplay_client.aio.batches import AsyncBatchStream, AsyncEpochs
from tdreplay_client.aio.draws import Draw, UnclaimedDraws
from tdreplay_client.aio.opened import Opened
from tdreplay_client.aio.signatures import arguments_of, in_new_thread, in_thread
from tdreplay_client.aio.threads import Opening, Workers, in_loop, outcome
from tdreplay_client.aio.writers import AsyncTrajectoryWriter, AsyncWriter
from tdreplay_client.buffer import RemoteReplayBuffer

__all__ = ["AsyncReplayBuffer"]

C = TypeVar("C")
T = TypeVar("T")
_INSERTS, _DRAWS, _OTHERS = "inserts", "draws", "others"
THREADS = {_INSERTS: 8, _DRAWS: 8, _OTHERS: 4}
"""The most threads of a buffer, by what is done in them. Inserts may wait for draws, and draws for inserts: neither takes the other's threads."""
_KINDS = {"add": _INSERTS, "add_batch": _INSERTS, "insert": _INSERTS, "take": _DRAWS}


class AsyncReplayBuffer(Opened[RemoteReplayBuffer]):
    """A table of a tdreplay server, for asyncio: `RemoteReplayBuffer`, whose methods are coroutines here, with the same arguments and errors.

    ``async with AsyncReplayBuffer(address, buffer_size=100_000) as buffer: await buffer.add(row)``. The constructor takes the arguments of
    `RemoteReplayBuffer`, and does not connect: ``async with``, ``await AsyncReplayBuffer.open(...)`` or the first call does.

    - Every method is awaited. `stream`, `epochs`, `create_epoch_iterator`, `writer` and `trajectory_writer` are called without ``await``: what they
      give is an async context manager, and an async iterator where the sync one is an iterator. To await it opens it.
    - What costs no call stays a property: `address`, `table`, `device`. The others are coroutines: ``await buffer.size()``, which is ``len``, too.
    - A function that is given as ``progress`` is called in the event loop in which the call was made.
    - Many tasks, and several event loops, may use one buffer. Calls are carried out in threads, at most 20 of them, and one for each open stream and
      writer. The event loop never waits for one.

    A call that is cancelled, by `asyncio.timeout` too, ends at once, and leaves the buffer whole. A thread that already began it goes on until the
    call is over, at most the buffer's timeout, or until the buffer is closed: an insert that began is carried out. A batch that comes after its
    `sample_batch` was cancelled is given to the next one with the same arguments, and so are those of streams and epochs.

    A buffer can be pickled and copied as `RemoteReplayBuffer` can. After `os.fork()` it raises a ForkedError in the child.
    """

    @arguments_of(RemoteReplayBuffer.__init__)
    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._begin(arguments, options)

    def _begin(self, arguments: tuple[Any, ...], options: dict[str, Any], made: RemoteReplayBuffer | None = None) -> None:
        address = inspect.signature(RemoteReplayBuffer).bind(*arguments, **options).arguments.get("address")
        what = f"the buffer at {address}"
        owner = Owner(what, "gRPC does not survive a fork, so start such a process by spawn")
        super().__init__(owner, Opening(partial(RemoteReplayBuffer, *arguments, **options)), what)
        self._arguments, self._options = arguments, options
        if made is not None:
            self._opening.is_made(copy(made))
        self._pools = {kind: Workers(most, what) for kind, most in THREADS.items()}
        self._children: weakref.WeakSet[Workers] = weakref.WeakSet()
        self._unclaimed = UnclaimedDraws()
        self._iterator: AsyncEpochs | None = None

    @classmethod
    @arguments_of(RemoteReplayBuffer.__init__)
    async def open(cls, *arguments: Any, **options: Any) -> AsyncReplayBuffer:
        """Makes a buffer, and opens it."""
        return await cls(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "options": self._options, "made": self._opening.made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(**state)

    def _workers(self, name: str) -> Workers:
        return self._pools[_KINDS.get(name, _OTHERS)]

    def _submit(self, method: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        return super()._submit(method, *arguments, **_told_in_loop(options))

    async def close(self) -> None:
        """Closes the open writers, each after it sent its rows, then the connection. Running calls end with a ClosedError.

        It waits for the writers at most `timeout` seconds. Closing twice is allowed; where it is cancelled, it is closed all the same. The table
        stays.
        """
        if not self._owner.is_here:
            return
        self._iterator = None
        ending = self._end_with(RemoteReplayBuffer.close)
        for workers in (*self._pools.values(), *self._children):
            workers.close()
        await outcome(ending, certain=True)

    @property
    def address(self) -> str:
        """The address of the server, once it is open."""
        return self._made.address

    @property
    def table(self) -> str:
        """The table's name, once it is open."""
        return self._made.table

    @property
    def device(self) -> torch.device:
        """The device of the batches, once it is open."""
        return self._made.device

    tables = staticmethod(in_new_thread(RemoteReplayBuffer.tables))
    server_status = staticmethod(in_new_thread(RemoteReplayBuffer.server_status))

    # -- writing ------------------------------------------------------------------------------------------------------------------------------

    add = in_thread(RemoteReplayBuffer.add)
    add_batch = in_thread(RemoteReplayBuffer.add_batch)
    insert = in_thread(RemoteReplayBuffer.insert)
    update_priorities = in_thread(RemoteReplayBuffer.update_priorities)

    @arguments_of(RemoteReplayBuffer.writer)
    def writer(self, **options: Any) -> AsyncWriter:
        """An `AsyncWriter`."""
        return AsyncWriter(*self._child(RemoteReplayBuffer.writer, "the writer", options))

    @arguments_of(RemoteReplayBuffer.trajectory_writer)
    def trajectory_writer(self, *n_envs: Any, **options: Any) -> AsyncTrajectoryWriter:
        """An `AsyncTrajectoryWriter`."""
        return AsyncTrajectoryWriter(*self._child(RemoteReplayBuffer.trajectory_writer, "the writer", options, n_envs))

    # -- reading ------------------------------------------------------------------------------------------------------------------------------

    @arguments_of(RemoteReplayBuffer.sample_batch)
    async def sample_batch(self, batch_size: SupportsIndex, **options: Any) -> TensorDict:
        batch = None
        while batch is None:
            batch = await self._drawn((batch_size, options))
        return batch

    async def _drawn(self, asked: tuple[Any, dict[str, Any]]) -> TensorDict | None:
        self._owner.check()
        draw = self._unclaimed.take(asked)
        if draw is None:
            draw = Draw(asked)
            draw.future = self._pools[_DRAWS].submit(partial(draw.take, self._opening))
        try:
            return await outcome(draw.future)
        except asyncio.CancelledError:
            self._unclaimed.put(draw)
            raise

    @arguments_of(RemoteReplayBuffer.sample_random)
    async def sample_random(self, batch_size: SupportsIndex, **options: Any) -> TensorDict:
        return await self.sample_batch(batch_size, **options)

    sample_by_index = in_thread(RemoteReplayBuffer.sample_by_index)
    sample_by_index_fields = in_thread(RemoteReplayBuffer.sample_by_index_fields)
    sample_all = in_thread(RemoteReplayBuffer.sample_all)
    episodes = in_thread(RemoteReplayBuffer.episodes)
    episode = in_thread(RemoteReplayBuffer.episode)

    @arguments_of(RemoteReplayBuffer.stream)
    def stream(self, batch_size: SupportsIndex, **options: Any) -> AsyncBatchStream:
        """An `AsyncBatchStream`."""
        return AsyncBatchStream(*self._child(RemoteReplayBuffer.stream, "the stream", options, (batch_size,)))

    @arguments_of(RemoteReplayBuffer.epochs)
    def epochs(self, *sizes: Any, **options: Any) -> AsyncEpochs:
        """An `AsyncEpochs`."""
        return AsyncEpochs(*self._child(RemoteReplayBuffer.epochs, "the epochs", options, sizes))

    @arguments_of(RemoteReplayBuffer.create_epoch_iterator)
    def create_epoch_iterator(self, *sizes: Any, **options: Any) -> AsyncEpochs:
        """An `AsyncEpochs`, which `get_next_batch` uses from now on."""
        self._iterator = AsyncEpochs(*self._child(RemoteReplayBuffer.create_epoch_iterator, "the epochs", options, sizes))
        return self._iterator

    def _child(
        self, method: Callable[..., C], what: str, options: dict[str, Any], arguments: tuple[Any, ...] = ()
    ) -> tuple[Owner, Opening[C], Workers, str]:
        """What a stream or a writer is made of: its process, what opens it, its thread, and its name."""
        self._owner.check()
        inspect.signature(method).bind(self, *arguments, **options)
        options = _told_in_loop(options)
        opening, name = self._opening, f"{what} of {self._what}"
        workers = Workers(1, name)
        self._children.add(workers)
        return self._owner, Opening(lambda: method(opening.get(), *arguments, **options)), workers, name

    @arguments_of(RemoteReplayBuffer.get_next_batch)
    async def get_next_batch(self, batch_size: SupportsIndex) -> TensorDict:
        """The end of the iterator is a StopAsyncIteration here."""
        check_batch_size(batch_size)
        return await (self.sample_batch(batch_size) if self._iterator is None else anext(self._iterator))

    @arguments_of(RemoteReplayBuffer.calculate_num_batches)
    async def calculate_num_batches(self, batch_size: SupportsIndex) -> int:
        return -(-await self.size() // check_batch_size(batch_size))

    @arguments_of(RemoteReplayBuffer.get_steps_and_iterator)
    async def get_steps_and_iterator(self, n_epochs: SupportsIndex, max_iter: SupportsIndex, batch_size: SupportsIndex) -> int:
        epochs, steps, size = check_whole(n_epochs, "n_epochs", 0), check_whole(max_iter, "max_iter", 0), check_batch_size(batch_size)
        if epochs == 0:
            self._iterator = None
            return steps
        batches = await self.calculate_num_batches(size)
        await self.create_epoch_iterator(size, epochs)
        return epochs * batches

    # -- state --------------------------------------------------------------------------------------------------------------------------------

    state = in_thread(RemoteReplayBuffer.state)
    describe = in_thread(RemoteReplayBuffer.describe)
    save = in_thread(RemoteReplayBuffer.save)
    checkpoint = in_thread(RemoteReplayBuffer.checkpoint)

    @arguments_of(RemoteReplayBuffer.wait_for)
    async def wait_for(self, rows: SupportsIndex, timeout: SupportsFloat | None = DEFAULT_TIMEOUT) -> None:
        wait = RowWait(rows, timeout)
        while pause := wait.pause(await self.state()):
            await asyncio.sleep(pause)

    async def storing_device(self) -> torch.device:
        """The device of the stored rows."""
        return (await self.state()).storing_device

    async def buffer_size(self) -> int:
        """The capacity, in rows."""
        return (await self.state()).buffer_size

    async def size(self) -> int:
        """The rows stored: what `len` says of a sync buffer."""
        return (await self.state()).size

    async def data_size(self) -> int:
        """The rows stored."""
        return await self.size()

    async def pointer(self) -> int:
        """The slot of the next row."""
        return (await self.state()).pointer

    async def durability(self) -> str:
        """What stored rows survive. none: nothing; process: the death of the process that has them; interval, power: a loss of power, too."""
        return (await self.state()).durability

    @arguments_of(RemoteReplayBuffer.reset)
    async def reset(self, buffer_size: SupportsIndex | None = None) -> None:
        await self._begin_anew(RemoteReplayBuffer.reset, buffer_size)

    @arguments_of(RemoteReplayBuffer.load)
    async def load(self, path: str | os.PathLike[str]) -> None:
        await self._begin_anew(RemoteReplayBuffer.load, path)

    @arguments_of(RemoteReplayBuffer.drop)
    async def drop(self) -> None:
        await self._begin_anew(RemoteReplayBuffer.drop)

    async def _begin_anew(self, method: Callable[..., None], *arguments: Any) -> None:
        await self._call(method, *arguments)
        self._iterator = None


def _told_in_loop(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with a ``progress`` that is told in this event loop, and not in the thread of the call."""
    progress = options.get("progress")
    return options | {"progress": in_loop(progress)} if callable(progress) else options
