"""A server that dies and comes back, and rows that say which they are."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import torch
from tensordict import TensorDict

from children import Server, free_port, server_process
from conftest import numbers, rows
from tdreplay.errors import DeadlineError, ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ServerConfig

WIDTH = 64 << 10
SIZE = 4000


class Phoenix:
    """A server that is killed, and comes back at the same address with the same data directory."""

    def __init__(self, data_dir, **settings: Any) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._config = ServerConfig(address=self.address, data_dir=data_dir, **settings)
        self._running = ExitStack()
        self.server: Server | None = None

    def start(self) -> None:
        self.server = self._running.enter_context(server_process(self._config))

    def kill(self) -> None:
        self.server.child.kill()
        self.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def restart_meanwhile(self) -> threading.Thread:
        """Kills the server now; a thread starts it again."""
        self.kill()
        thread = threading.Thread(target=self.start)
        thread.start()
        return thread

    def close(self) -> None:
        self._running.close()
        self.server = None


def restart_soon(phoenix: Phoenix) -> None:
    time.sleep(0.3)
    phoenix.restart()


def wait_until_dead(phoenix: Phoenix) -> None:
    deadline = time.monotonic() + 20
    while not phoenix.server.child.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_reached(buffer: RemoteReplayBuffer) -> None:
    """Returns once a buffer's calls reach the server, which is there again."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(ServerUnavailableError):
            buffer.state()
            return
    raise AssertionError("the server is not reached")


def small(first: int, count: int) -> TensorDict:
    return rows(count, first)


def wide(first: int, count: int) -> TensorDict:
    """Rows of 64 KiB, each of which says which it is."""
    number = torch.arange(first, first + count)
    return TensorDict({"n": number, "x": number.to(torch.uint8).unsqueeze(1).expand(count, WIDTH)}, [count])


def stored(buffer: RemoteReplayBuffer) -> list[int]:
    """Which rows a buffer holds, in the order in which they were stored."""
    batch = buffer.sample_all()
    batch = batch[batch["row_id"].argsort()]
    if "x" not in batch.keys():  # noqa: SIM118 - a TensorDict iterates over its rows.
        return numbers(batch)
    assert torch.equal(batch["x"], batch["n"].to(torch.uint8).unsqueeze(1).expand(len(batch), WIDTH))
    found: list[int] = batch["n"].tolist()
    return found


def add_until_stored(buffer: RemoteReplayBuffer, call: str, given: TensorDict, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            getattr(buffer, call)(given)
        except (DeadlineError, ServerUnavailableError):
            assert time.monotonic() < deadline
        else:
            return


def give_again(buffer: RemoteReplayBuffer, how: str, batch: TensorDict) -> None:
    if how == "add_batch":
        add_until_stored(buffer, how, batch)
    else:
        with buffer.writer() as writer:
            writer.extend(batch)
