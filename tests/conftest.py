"""Real servers on free ports and Unix sockets, and buffers of both kinds over them."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig

MakeBuffer = Callable[..., BaseReplayBuffer]
TRANSPORTS = ("tcp", "unix")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ReplayServer]]:
    """One server for each kind of address, for the whole run. Every test uses tables of its own."""
    socket = tmp_path_factory.mktemp("sockets") / "server.sock"
    with ExitStack() as stack:
        addresses = {"tcp": "127.0.0.1:0", "unix": f"unix:{socket}"}
        yield {kind: stack.enter_context(ReplayServer(ServerConfig(address=address, max_tables=100_000))) for kind, address in addresses.items()}


@pytest.fixture
def address(servers: dict[str, ReplayServer]) -> str:
    """Of the server that listens on TCP."""
    return servers["tcp"].address


@pytest.fixture
def table() -> str:
    """A name that no other test uses."""
    return f"table-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(params=["in-process", *TRANSPORTS])
def make_buffer(request: pytest.FixtureRequest, servers: dict[str, ReplayServer]) -> Iterator[MakeBuffer]:
    """Makes empty buffers of one kind: ``make_buffer(buffer_size, device="cpu")``."""
    with ExitStack() as stack:

        def make(buffer_size: int, device: str = "cpu") -> BaseReplayBuffer:
            if request.param == "in-process":
                return stack.enter_context(ReplayBuffer(device, "cpu", buffer_size))
            name = f"table-{os.getpid()}-{next(_numbers)}"
            server = servers[request.param].address
            return stack.enter_context(RemoteReplayBuffer(server, table=name, buffer_size=buffer_size, device=device))

        yield make


def rows(n: int, start: int = 0) -> TensorDict:
    """n rows, whose fields tell which rows they are."""
    number = torch.arange(start, start + n)
    return TensorDict(
        {
            "obs": number.float().unsqueeze(1).expand(n, 3).clone(),
            "action": number.clone(),
            "done": number % 2 == 0,
            "next": TensorDict({"obs": number.float().unsqueeze(1).repeat(1, 3) + 1}, [n]),
        },
        [n],
    )


def numbers(batch: TensorDict) -> list[int]:
    """Which rows a batch of `rows` holds, after checking that each is whole."""
    number = batch["action"]
    assert torch.equal(batch["obs"], number.float().unsqueeze(1).expand(-1, 3))
    assert torch.equal(batch["done"], number % 2 == 0)
    assert torch.equal(batch["next", "obs"], batch["obs"] + 1)
    found: list[int] = number.tolist()
    return found


def files_under(directory: Path) -> dict[str, bytes]:
    """Every file under a directory with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def freeze(pid: int) -> None:
    """Stops a process, and returns once every thread of it stands still: the signal alone may find them at work a moment longer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(_stands(thread) for thread in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} does not stop"


def _stands(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def thaw(pid: int) -> None:
    """Lets a frozen process go on."""
    os.kill(pid, signal.SIGCONT)
