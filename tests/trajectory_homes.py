"""Where a table lives that outlives what serves it: a directory with one process after the other, each of which may be killed."""

from __future__ import annotations

import itertools
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from children import Server, free_port, server_process
from tdreplay.api import BaseReplayBuffer
from tdreplay.samplers import Sampler
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ServerConfig
from tdreplay_server.checkpoints.restore import resize, restore
from tdreplay_server.durability.data_directory import table_directory
from trajectory_play import TRAJECTORIES
from trajectory_stage import Stage

__all__ = ["HOMES", "Home", "InProcess", "Remote"]

TABLE, TIMEOUT = "steps", 60.0


class Home(ABC):
    """Attributes:

    directory: Of all that the home keeps.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._places = (directory / f"home-{number}" for number in itertools.count())
        self.place = next(self._places)

    @abstractmethod
    def open(self, capacity: int, sampler: Sampler) -> BaseReplayBuffer:
        """The buffer of a new table."""

    @abstractmethod
    def kill(self, stage: Stage) -> None:
        """What serves the table dies at once; what comes after it goes on with what it left."""

    @abstractmethod
    def restore(self, stage: Stage) -> None:
        """The table is made again, of a checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """Ends what serves the table."""


class InProcess(Home):
    """A buffer in process: its writers end with it, and other ones come."""

    def open(self, capacity: int, sampler: Sampler) -> ReplayBuffer:
        self._sampler, self._buffer = sampler, self._opened(capacity, sampler)
        return self._buffer

    def _opened(self, capacity: int, sampler: Sampler) -> ReplayBuffer:
        return ReplayBuffer("cpu", "cpu", capacity, sampler=sampler, trajectories=TRAJECTORIES, directory=table_directory(self.place, TABLE))

    def kill(self, stage: Stage) -> None:
        left = next(self._places)
        shutil.copytree(self.place, left)
        self._leave(stage)
        self.place = left
        self._enter(stage)

    def reopen(self, stage: Stage) -> None:
        """Closes the buffer, and opens it again."""
        self._leave(stage)
        self._enter(stage)

    def resize(self, stage: Stage, capacity: int) -> None:
        """Gives the table another capacity: the newest rows stay."""
        self._leave(stage)
        resize(self.place, TABLE, capacity)
        stage.ring.resize(capacity)
        self._enter(stage)

    def restore(self, stage: Stage) -> None:
        made = Path(stage.buffer.checkpoint("one").path)
        self._leave(stage)
        self.place = next(self._places)
        restore(made, self.place, TABLE)
        self._enter(stage)

    def _leave(self, stage: Stage) -> None:
        self._envs = [len(crew.actors) for crew in stage.crews]
        stage.leave()
        self.close()

    def _enter(self, stage: Stage) -> None:
        stage.buffer = self.open(stage.ring.capacity, self._sampler)
        stage.enter(self._envs)

    def close(self) -> None:
        self._buffer.close()


class Remote(Home):
    """A server process, and a buffer whose writers go on with their episodes when another server is there."""

    transport = "grpc"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.address = f"127.0.0.1:{free_port()}"
        self._running = ExitStack()

    def open(self, capacity: int, sampler: Sampler) -> RemoteReplayBuffer:
        self._start()
        options = {"sampler": sampler, "trajectories": TRAJECTORIES, "transport": self.transport, "timeout": TIMEOUT}
        self._buffer = RemoteReplayBuffer(self.address, table=TABLE, buffer_size=capacity, **options)
        return self._buffer

    def _start(self) -> None:
        self._server: Server = self._running.enter_context(server_process(ServerConfig(address=self.address, data_dir=self.place)))

    def kill(self, stage: Stage) -> None:
        self._server.child.kill()
        self._running.close()
        self._start()

    def restore(self, stage: Stage) -> None:
        made = Path(stage.buffer.checkpoint("one").path)
        self._running.close()
        self.place = next(self._places)
        restore(made, self.place, TABLE)
        self._start()

    def close(self) -> None:
        self._buffer.close()
        self._running.close()


class RemoteMemory(Remote):
    """The same through shared memory."""

    transport = "shared_memory"


HOMES: Mapping[str, Callable[[Path], Home]] = {"in-process": InProcess, "grpc": Remote, "shared-memory": RemoteMemory}
