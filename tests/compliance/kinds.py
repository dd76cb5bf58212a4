"""The kinds of buffers and servers that the suite runs over: one entry for each.

Of tdreplay's packages, the module imports only what it opens: the suite also runs where no server is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tdreplay.api import BaseReplayBuffer

ADDRESS = os.environ.get("TDREPLAY_COMPLIANCE_ADDRESS")


class MakeBuffer(Protocol):
    """Makes empty buffers of one kind."""

    def __call__(self, buffer_size: Any, **options: Any) -> BaseReplayBuffer:
        """The options are those that every buffer has: device, storing_device, cast, seed."""


@dataclass(frozen=True, kw_only=True)
class BufferKind:
    """How to open a buffer, and what it can do.

    Attributes:
        open: makes an empty buffer of the table `table` on the server at `address`; a buffer in process needs neither.
        server: the entry of `SERVERS` that the buffer speaks to. None: it needs no server.
        ways_in: the methods that take rows, of the buffer or of its writer.
        streams: whether it has `stream`.
    """

    open: Callable[..., BaseReplayBuffer]
    server: str | None
    ways_in: tuple[str, ...] = ("add", "add_batch")
    streams: bool = False


def open_in_process(address: str | None, table: str, buffer_size: Any, *, device: Any = "cpu", storing_device: Any = "cpu", **options: Any) -> Any:
    """A buffer in this process, in memory."""
    from tdreplay_server import ReplayBuffer

    return ReplayBuffer(device, storing_device, buffer_size, **options)


def open_remote(transport: str) -> Callable[..., BaseReplayBuffer]:
    """What opens remote buffers whose rows travel so."""

    def open_table(address: str, table: str, buffer_size: Any, **options: Any) -> BaseReplayBuffer:
        from tdreplay_client import RemoteReplayBuffer

        return RemoteReplayBuffer(address, table=table, buffer_size=buffer_size, transport=transport, **options)

    return open_table


@contextmanager
def serve(directory: Path, **settings: Any) -> Iterator[str]:
    """The address of a server in this process, which listens on TCP where no address is given."""
    from tdreplay_server import ReplayServer, ServerConfig

    with ReplayServer(ServerConfig(**({"address": "127.0.0.1:0", "max_tables": 100_000} | settings))) as server:
        yield server.address


Serve = Callable[[Path], Any]

# Each serves for as long as a `with` lasts, and may use the empty directory that it is given.
SERVERS: Mapping[str, Serve] = {
    "memory": serve,
    "socket": lambda directory: serve(directory, address=f"unix:{directory / 'server.sock'}"),
    "directory": lambda directory: serve(directory, data_dir=directory),
}
# The servers under the tests of the wire. The socket carries the same bytes as TCP; the buffers have it.
ON_THE_WIRE = ("memory", "directory")

REMOTE_WAYS_IN = ("add", "add_batch", "append", "extend")
REMOTE = {
    "grpc": BufferKind(open=open_remote("grpc"), server="memory", ways_in=REMOTE_WAYS_IN, streams=True),
    "shared-memory": BufferKind(open=open_remote("shared_memory"), server="socket", ways_in=REMOTE_WAYS_IN, streams=True),
}
BUFFERS: Mapping[str, BufferKind] = REMOTE if ADDRESS else {"in-process": BufferKind(open=open_in_process, server=None), **REMOTE}

# A checkpoint stays on the disk of the server: a server that is not the suite's own makes none.
leaves_a_checkpoint = pytest.mark.skipif(ADDRESS is not None, reason="it would leave checkpoints on the disk of the server")
