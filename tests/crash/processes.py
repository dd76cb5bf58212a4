"""Servers that are killed, and the processes that go on inserting and reading meanwhile: forked from one that has everything imported."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numbered import Sightings, rows
from tensordict import TensorDict

from children import Child, child_of, free_port
from tdreplay.errors import SlotIndexError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig
from tdreplay_server.durability import journal
from tdreplay_server.durability.journal_state import read_journal
from tdreplay_server.system import failpoints

KILLS = int(os.environ.get("TDREPLAY_KILLS", "12"))
TIMEOUT = 60.0
"""Of the clients of a server that is killed: it comes back well within it."""
BLOCK = 80
"""Rows of a block that goes through shared memory: 320 KiB."""


# -- servers --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerSettings:
    """Of one server process.

    Attributes:
        address: where it listens.
        data_dir: of its rows.
        buffer_size: of the table 'default'; None: a client says it.
        failpoint: value of ``TDREPLAY_FAILPOINT``.
        commits_to_compact: after so many commits the journal is compacted.
        early: whether it says that it is there before it starts: it may die while it does.
    """

    address: str
    data_dir: str
    buffer_size: int | None = None
    failpoint: str = ""
    commits_to_compact: int = journal.COMMITS_TO_COMPACT
    early: bool = False


def serve(settings: ServerSettings) -> None:
    """In the child: a server."""
    torch.set_num_threads(1)
    os.environ["TDREPLAY_FAILPOINT"] = settings.failpoint
    importlib.reload(failpoints)  # It reads the variable once.
    journal.COMMITS_TO_COMPACT = settings.commits_to_compact
    server = ReplayServer(ServerConfig(address=settings.address, data_dir=settings.data_dir, buffer_size=settings.buffer_size))
    if settings.early:
        print("starts", flush=True)
    with server:
        if not settings.early:
            print("serves", flush=True)
        server.wait()


class Servers:
    """Server processes, one after the other, at one address and over one directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.address = f"127.0.0.1:{free_port()}"

    @contextmanager
    def running(self, **settings: object) -> Iterator[Child]:
        """A server while the context is open. Then it is killed, where it did not die by itself."""
        with child_of(serve, ServerSettings(self.address, str(self.data_dir), **settings)) as child:
            yield child


def recovered(data_dir: Path, scratch: Path) -> tuple[TensorDict, int]:
    """What the next server will find in the directory of one that was killed, before any client comes back: the rows of 'default', and their count.

    It works on a copy, at `scratch`: the directory stays as the kill left it.
    """
    shutil.copytree(data_dir / "tables" / "default", scratch)
    buffer_size = read_journal(scratch).ring.buffer_size
    with ReplayBuffer("cpu", "cpu", buffer_size, directory=scratch) as buffer:
        found = buffer.sample_all(), buffer.state().write_count
    shutil.rmtree(scratch)
    return found


# -- actors and learners --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a process works.

    Attributes:
        address: of the server.
        directory: for what it leaves behind; a file ``stop`` in it ends the work.
        name: of the process.
        actor: its number, where it is an actor.
    """

    address: str
    directory: str
    name: str
    actor: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether there is more to do."""
        return not (Path(self.directory) / "stop").exists()

    def path(self, suffix: str) -> Path:
        """A file of this process."""
        return Path(self.directory) / f"{self.name}{suffix}"

    def acknowledge(self, rows: int) -> None:
        """Notes that the first `rows` rows of the actor are acknowledged."""
        with self.path(".acknowledged").open("ab", buffering=0) as log:
            log.write(rows.to_bytes(8, "little"))

    @property
    def acknowledged(self) -> int:
        """The rows of the actor that were acknowledged so far: they are the first ones."""
        log = np.fromfile(self.path(".acknowledged"), "<i8") if self.path(".acknowledged").exists() else np.empty(0, "<i8")
        assert (np.diff(log, prepend=0) > 0).all()
        return int(log[-1]) if len(log) else 0


def _insert(place: Place, buffer: RemoteReplayBuffer, add: Callable[[int], int], pause: float) -> None:
    """Calls `add` with the number of the next row, again and again; it says how many it stored."""
    print("inserts", flush=True)
    number = 0
    while place.goes_on:
        number += add(number)
        place.acknowledge(number)
        time.sleep(pause)


def single_rows(place: Place) -> None:
    """Adds one row after the other, over gRPC."""

    def add(number: int) -> int:
        buffer.add(rows(place.actor, number, 1)[0])
        return 1

    with RemoteReplayBuffer(place.address, timeout=TIMEOUT, transport="grpc") as buffer:
        _insert(place, buffer, add, 0.002)


def appended_rows(place: Place) -> None:
    """Appends rows to a writer, over gRPC, more at once than there may be in flight."""

    def add(number: int) -> int:
        for row in rows(place.actor, number, 100).unbind(0):
            writer.append(row)
        writer.flush()
        return 100

    with RemoteReplayBuffer(place.address, timeout=TIMEOUT, transport="grpc") as buffer, buffer.writer(flush_rows=4) as writer:
        _insert(place, buffer, add, 0.05)


def batches(place: Place) -> None:
    """Adds batches of one to three blocks, through shared memory."""

    def add(number: int) -> int:
        count = BLOCK * (1 + number % 3)
        buffer.add_batch(rows(place.actor, number, count))
        return count

    with RemoteReplayBuffer(place.address, timeout=TIMEOUT) as buffer:
        _insert(place, buffer, add, 0.05)


def extended_batches(place: Place) -> None:
    """Extends a writer by batches, through shared memory."""

    def add(number: int) -> int:
        for part in range(4):
            writer.extend(rows(place.actor, number + part * BLOCK, BLOCK))
        writer.flush()
        return 4 * BLOCK

    with RemoteReplayBuffer(place.address, timeout=TIMEOUT) as buffer, buffer.writer() as writer:
        _insert(place, buffer, add, 0.1)
        place.path(".shared").write_text(str(writer.shared))


def _read(place: Place, next_batch: Callable[[], object], pause: float) -> None:
    """Takes batch after batch, and leaves behind what it saw."""
    print("reads", flush=True)
    seen = Sightings()
    while place.goes_on:
        seen.note(next_batch())
        time.sleep(pause)
    seen.save(place.path(".seen"))


def streamed(place: Place) -> None:
    """Reads a stream, through shared memory."""
    with RemoteReplayBuffer(place.address, timeout=TIMEOUT) as buffer, buffer.stream(BLOCK, prefetch=4) as stream:
        _read(place, lambda: next(stream), 0.01)
        place.path(".shared").write_text(str(stream.shared))


def mixed(place: Place) -> None:
    """Reads random batches, named slots, and epochs, in turn."""
    with RemoteReplayBuffer(place.address, timeout=TIMEOUT) as buffer:
        turns = _mixed_batches(buffer)
        _read(place, lambda: next(turns), 0.01)


def _mixed_batches(buffer: RemoteReplayBuffer) -> Iterator[object]:
    while True:
        yield buffer.sample_batch(BLOCK)
        state = buffer.state()
        newest = torch.arange(state.write_count - min(BLOCK, state.size), state.write_count)
        with suppress(SlotIndexError):  # The server died since then while these rows were being overwritten: they are gone, the new ones not there.
            yield buffer.sample_by_index(newest % state.buffer_size)
        yield from buffer.create_epoch_iterator(BLOCK, shuffle=True)


def whole_tables(place: Place) -> None:
    """Follows the table: reads all of it, again and again."""
    with RemoteReplayBuffer(place.address, timeout=TIMEOUT, transport="grpc") as buffer:
        _read(place, buffer.sample_all, 0.03)


ACTORS = {"single_rows": single_rows, "appended_rows": appended_rows, "batches": batches, "extended_batches": extended_batches}
LEARNERS = {"streamed": streamed, "mixed": mixed, "whole_tables": whole_tables}
WORK: dict[str, Callable[[Place], None]] = {**ACTORS, **LEARNERS}


def work(place: Place) -> None:
    """In the child: does what the place is named after."""
    torch.set_num_threads(1)
    WORK[place.name](place)
