"""Servers that are killed, and the processes that go on inserting and reading meanwhile: forked from one that has everything imported."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numbered import Sightings, rows
from tensordict import TensorDict
from zygote import Child, Zygote

from tdreplay.errors import ServerUnavailableError, SlotIndexError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig, failpoints, journal
from tdreplay_server.durability.journal import read_journal

KILLS = int(os.environ.get("TDREPLAY_KILLS", "12"))
TIMEOUT = 60.0
"""Of the clients of a server that is killed: it comes back well within it."""
BLOCK = 80
"""Rows of a block that goes through shared memory: 320 KiB."""


def new_zygote() -> Zygote:
    """Of all processes of a test: `Servers.running` and `working` fork them."""
    return Zygote(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import processes", "processes.run(argument)")


def run(argument: str) -> None:
    """What a forked process does."""
    torch.set_num_threads(1)
    kind, arguments = json.loads(argument)
    if kind == "server":
        _serve(ServerSettings(**arguments))
    else:
        WORK[kind](Place(**arguments))


# -- servers --------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerSettings:
    """Of one server process.

    Attributes:
        address: where it listens.
        data_dir: of its rows.
        buffer_size: of the table 'default'; None: a client says it.
        failpoint: NAME:N, as ``TDREPLAY_FAILPOINT`` says it to a process that imports.
        commits_to_compact: after so many commits the journal is compacted.
        early: whether it says that it is there before it starts: it may die while it does.
    """

    address: str
    data_dir: str
    buffer_size: int | None = None
    failpoint: str = ""
    commits_to_compact: int = journal.COMMITS_TO_COMPACT
    early: bool = False


def _serve(settings: ServerSettings) -> None:
    failpoints._name, _, count = settings.failpoint.partition(":")
    failpoints._left = int(count or 1)
    journal.COMMITS_TO_COMPACT = settings.commits_to_compact
    server = ReplayServer(ServerConfig(address=settings.address, data_dir=settings.data_dir, buffer_size=settings.buffer_size))
    if settings.early:
        print(os.getpid(), "starts", flush=True)
    with server:
        if not settings.early:
            print(os.getpid(), "serves", flush=True)
        server.wait()


class Servers:
    """Server processes, one after the other, at one address and over one directory."""

    def __init__(self, zygote: Zygote, data_dir: Path) -> None:
        self._zygote, self.data_dir = zygote, data_dir
        self.address = f"127.0.0.1:{_free_port()}"

    @contextmanager
    def running(self, **settings: object) -> Iterator[Child]:
        """A server while the context is open. Then it is killed, where it did not die by itself."""
        argument = json.dumps(("server", asdict(ServerSettings(self.address, str(self.data_dir), **settings))))
        with self._zygote.child(argument) as child:
            yield child

    def wait(self, server: Child) -> int:
        """Waits until a server ended, and gives its status."""
        return self._zygote.wait(server)


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


def _free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to connections: it stays free while its server is down."""
    for port in np.random.default_rng().permutation(np.arange(15_000, 30_000)).tolist():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


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
    print(os.getpid(), "inserts", flush=True)
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
    print(os.getpid(), "reads", flush=True)
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
        with suppress(ServerUnavailableError):  # An epoch cannot be continued.
            yield from buffer.create_epoch_iterator(BLOCK, shuffle=True)


def whole_tables(place: Place) -> None:
    """Follows the table: reads all of it, again and again."""
    with RemoteReplayBuffer(place.address, timeout=TIMEOUT, transport="grpc") as buffer:
        _read(place, buffer.sample_all, 0.03)


ACTORS = {"single_rows": single_rows, "appended_rows": appended_rows, "batches": batches, "extended_batches": extended_batches}
LEARNERS = {"streamed": streamed, "mixed": mixed, "whole_tables": whole_tables}
WORK: dict[str, Callable[[Place], None]] = {**ACTORS, **LEARNERS}
