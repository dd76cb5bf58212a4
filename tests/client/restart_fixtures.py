"""Buffers over a server that is killed and started again; a plugin of the tests that name it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from restarts import SIZE, Phoenix

from tdreplay.errors import DeadlineError
from tdreplay_client import RemoteReplayBuffer


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Phoenix]:
    made = Phoenix(tmp_path_factory.mktemp("phoenix") / "data")
    yield made
    made.close()


@pytest.fixture
def phoenix(server, table) -> Iterator[Phoenix]:
    """The server, alive when a test begins; the test's table is dropped at its end, where the server is alive then."""
    if server.server is None:
        server.start()
    yield server
    if server.server is not None and table in RemoteReplayBuffer.tables(server.address):
        with RemoteReplayBuffer(server.address, table=table) as buffer:
            buffer.drop()


@pytest.fixture
def open_buffer(phoenix, table):
    """Opens buffers over the test's table."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(RemoteReplayBuffer(phoenix.address, table=table, buffer_size=SIZE, **options))


@pytest.fixture
def buffer(open_buffer):
    return open_buffer(timeout=60)


@pytest.fixture
def short(open_buffer):
    """A buffer that gives up soon. To connect, it may try again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return open_buffer(timeout=0.5)
        except DeadlineError:
            assert time.monotonic() < deadline
