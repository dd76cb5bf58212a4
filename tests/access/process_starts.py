"""A process that starts others in each way, while it does nothing and while it is busy; see `test_process_starts`."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tdreplay.errors import ForkedError
from tdreplay_client import TLS, AsyncReplayBuffer, RemoteReplayBuffer, ReplayDataset
from tdreplay_client.dataset import as_is

SECONDS = 60.0
"""A child takes a few to import torch, and many times that on a machine that is busy."""
FORKS = 20
"""So many forks of a busy process find it at each of its moments."""


def start_others(address: str, ca_file: str, token: str) -> None:
    """In a process of its own: starts the others, and says that all is well."""
    access = {"tls": TLS(ca_file=ca_file), "token": token}
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tdreplay_client.buffer", "process_starts"])
    buffer = RemoteReplayBuffer(address, timeout=SECONDS, **access)
    of_asyncio = asyncio.run(AsyncReplayBuffer.open(address, timeout=SECONDS, **access))
    for method, found in (("fork", ["ForkedError"] * 2), ("forkserver", [3, 3]), ("spawn", [3, 3])):
        assert said(method, buffer, of_asyncio) == found
        with traffic(buffer, of_asyncio):
            for _ in range(FORKS if method == "fork" else 1):
                assert said(method, buffer, of_asyncio) == found
    with traffic(buffer, of_asyncio):
        load(ReplayDataset(address, 8, **access))
    asyncio.run(of_asyncio.close())
    buffer.close()
    print("passed", flush=True)


def said(method: str, *buffers: Any) -> list[Any]:
    """What a child that is started so says of its parent's buffers."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=use, args=(sender, *buffers))
    process.start()
    assert receiver.poll(SECONDS), f"{method}: nothing came"
    found: list[Any] = receiver.recv()
    process.join(SECONDS)
    assert process.exitcode == 0, f"{method}: {process.exitcode}"
    return found


def use(sender: Connection, buffer: RemoteReplayBuffer, of_asyncio: AsyncReplayBuffer) -> None:
    """In the child: a call of each buffer."""
    found: list[Any] = []
    for call in (lambda: buffer.sample_batch(3), lambda: asyncio.run(of_asyncio.sample_batch(3))):
        try:
            found.append(len(call()))
        except ForkedError:
            found.append("ForkedError")
    sender.send(found)


@contextmanager
def traffic(buffer: RemoteReplayBuffer, of_asyncio: AsyncReplayBuffer) -> Iterator[None]:
    """Calls of each kind run in threads meanwhile."""
    over, begun = threading.Event(), threading.Barrier(4)

    def keep(call: Any) -> None:
        call()
        begun.wait(SECONDS)
        while not over.wait(0.005):  # Calls are to run at each start, and not to take the child's time.
            call()

    async def gather() -> None:
        await asyncio.gather(of_asyncio.sample_batch(4), of_asyncio.add({"n": 0}), of_asyncio.state())

    with ExitStack() as stack:
        batches = stack.enter_context(buffer.stream(4))
        writer = stack.enter_context(buffer.writer())
        calls = (lambda: next(batches), lambda: writer.append({"n": 0}), lambda: asyncio.run(gather()))
        threads = [threading.Thread(target=keep, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        begun.wait(SECONDS)
        yield
        over.set()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()


def load(dataset: ReplayDataset) -> None:
    """Four workers bring batches where they are started, and an error at once where they are forks."""
    options: dict[str, Any] = {"batch_size": None, "num_workers": 4, "collate_fn": as_is}
    loader = DataLoader(dataset, multiprocessing_context="forkserver", **options)
    assert [len(batch) for batch in itertools.islice(loader, 12)] == [8] * 12
    with pytest.raises(ForkedError, match="spawn"):
        next(iter(DataLoader(dataset, multiprocessing_context="fork", **options)))
