"""A server that stands still for a while: every call ends in time with an error, and when the server goes on, so do its users, without a loss.

Stopped is what a machine that swaps, a file system that hangs, or a network that swallows packets looks like. ``make crash`` stops it for a minute.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

import pytest
import torch
from numbered import Sightings, rows
from processes import KILLS, Servers
from tensordict import TensorDict

from conftest import freeze, thaw
from tdreplay.errors import DeadlineError, ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.writing.writer import Writer

LONG = KILLS >= 100
SECONDS, TIMEOUT = (60.0, 10.0) if LONG else (4.0, 1.5)
SLACK = 2.0
"""Seconds that a call may take beyond its deadline, on a busy machine."""
BUFFER_SIZE, BLOCK, FILLER = 2000, 80, 0
UNANSWERED = (DeadlineError, ServerUnavailableError)
T = TypeVar("T")

pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)


class User:
    """Someone who calls, and calls again after an error.

    Attributes:
        done: calls that succeeded.
        failed: seconds that each of the others took.
    """

    def __init__(self, buffer: RemoteReplayBuffer, actor: int, stop: threading.Event) -> None:
        self.buffer, self.actor, self._stop = buffer, actor, stop
        self.stored = self.done = 0
        self.failed: list[float] = []
        self.seen = Sightings()

    def turns(self) -> Iterator[int]:
        """Counts the turns, until it is told to stop."""
        return itertools.takewhile(lambda _: not self._stop.wait(0.01), itertools.count())

    def tried(self, call: Callable[[], T]) -> T:
        """What a call gives. An error's time is noted."""
        began = time.monotonic()
        try:
            given = call()
        except UNANSWERED:
            self.failed.append(time.monotonic() - began)
            raise
        self.done += 1
        return given

    def until_done(self, call: Callable[[], T]) -> T:
        """What a call gives that is repeated until it succeeds."""
        while True:
            with suppress(*UNANSWERED):
                return self.tried(call)


def adds(user: User) -> None:
    for number in user.turns():
        row = rows(user.actor, number, 1)[0]
        user.until_done(partial(user.buffer.add, row))
        user.stored += 1


def adds_batches(user: User) -> None:
    for _ in user.turns():
        batch = rows(user.actor, user.stored, 8 * BLOCK)  # More than a block.
        user.until_done(partial(user.buffer.add_batch, batch))
        user.stored += len(batch)


def writes(user: User) -> None:
    writer = user.buffer.writer(flush_rows=8)
    for _ in user.turns():
        batch = rows(user.actor, user.stored, 2 * BLOCK)
        for row in batch[:BLOCK].unbind(0):
            writer = _written(user, writer, partial(Writer.append, row=row))
        writer = _written(user, writer, partial(Writer.extend, batch=batch[BLOCK:]))
        writer = _written(user, writer, Writer.flush)
        user.stored += len(batch)
    writer.close()


def _written(user: User, writer: Writer, call: Callable[[Writer], None]) -> Writer:
    """Makes a call of a writer. Where it fails, the rows that are left go into another one, which is the one to go on with."""
    while True:
        try:
            user.tried(partial(call, writer))
            return writer
        except UNANSWERED as error:
            writer, call = user.buffer.writer(flush_rows=8), partial(_refill, left=error.rows)


def _refill(writer: Writer, left: TensorDict | None) -> None:
    if left is not None:
        writer.extend(left)
        writer.flush()


def samples(user: User) -> None:
    for turn in user.turns():
        user.seen.note(user.until_done(partial(user.buffer.sample_batch, BLOCK)))
        if turn % 4 == 0:
            user.seen.note(user.until_done(user.buffer.sample_all))


def samples_by_index(user: User) -> None:
    for _ in user.turns():
        state = user.until_done(user.buffer.state)
        user.seen.note(user.until_done(partial(user.buffer.sample_by_index, torch.arange(0, state.size, 20))))


def streams(user: User) -> None:
    stream = user.until_done(partial(user.buffer.stream, BLOCK, prefetch=3))
    for _ in user.turns():
        try:
            user.seen.note(user.tried(partial(next, stream)))
        except UNANSWERED:
            stream = user.until_done(partial(user.buffer.stream, BLOCK, prefetch=3))
    stream.close()


INSERTS = {"add": adds, "add_batch": adds_batches, "writer": writes}
READS = {"sample_batch": samples, "sample_by_index": samples_by_index, "stream": streams}


@pytest.mark.parametrize("turn", range(2 if LONG else 1))
def test_calls_end_in_time_while_the_server_stands_still_and_go_on_after_that(tmp_path, turn):
    stop = threading.Event()
    with ExitStack() as stack:
        servers = Servers(tmp_path / "data")
        server = stack.enter_context(servers.running(buffer_size=BUFFER_SIZE))
        transports = [("grpc", "shared_memory")[(number + turn) % 2] for number in range(1 + len(INSERTS) + len(READS))]
        buffers = [stack.enter_context(RemoteReplayBuffer(servers.address, timeout=TIMEOUT, transport=transport)) for transport in transports]
        buffers[FILLER].add_batch(rows(FILLER, 0, BUFFER_SIZE))
        users = [User(buffer, number, stop) for number, buffer in enumerate(buffers[1:], 1)]
        workers = stack.enter_context(ThreadPoolExecutor(len(users)))
        work = [workers.submit(act, user) for act, user in zip((INSERTS | READS).values(), users, strict=True)]
        stack.callback(stop.set)
        _until_all_did_more(users)
        freeze(server.pid)
        time.sleep(SECONDS)
        thaw(server.pid)
        _until_all_did_more(users)
        stop.set()
        for done in work:
            done.result(5 * TIMEOUT)
        _judge(buffers[FILLER], users)


def _until_all_did_more(users: list[User]) -> None:
    """Waits until each user's calls succeed again."""
    before, deadline = [user.done for user in users], time.monotonic() + 30
    while not all(user.done >= done + 5 for user, done in zip(users, before, strict=True)):
        assert time.monotonic() < deadline, [user.done - done for user, done in zip(users, before, strict=True)]
        time.sleep(0.01)


def _judge(buffer: RemoteReplayBuffer, users: list[User]) -> None:
    seen, names = Sightings(), (*INSERTS, *READS)
    for user in users:
        seen.add(user.seen)
    seen.note(buffer.sample_all())
    stored = {FILLER: BUFFER_SIZE} | {user.actor: user.stored for user in users[: len(INSERTS)]}
    faults = seen.faults(buffer.state().write_count, stored)
    slowest = max(max(user.failed, default=0.0) for user in users)
    print(
        f"1 server stood still for {SECONDS} s; {', '.join(f'{name}: {len(user.failed)}' for name, user in zip(names, users, strict=True))} calls "
        f"failed, the slowest after {slowest:.2f} s of {TIMEOUT}; {sum(stored.values())} rows acknowledged, "
        f"{seen.checked} rows checked; found wrong: {len(faults)}"
    )
    assert faults == []
    assert all(user.failed for user in users)
    assert slowest <= TIMEOUT + SLACK
