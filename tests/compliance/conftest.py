"""The servers and tables of the suite: one server of each kind for the whole run, and tables that are gone when their test ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial

import grpc
import pytest

from compliance.kinds import ADDRESS, SERVERS, MakeBuffer, open_in_process, serve
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub

MESSAGES = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1)]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def address_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """The address of a server of a kind, which starts when the first test asks for it; also of number 1, 2, ... of them."""
    with ExitStack() as stack:
        yield cache(lambda kind, number=0: ADDRESS or stack.enter_context(SERVERS[kind](tmp_path_factory.mktemp(f"{kind}-{number}"))))


@pytest.fixture(scope="session")
def channel_to() -> Iterator[Callable[[str], grpc.Channel]]:
    """The channel that all tests use to an address."""
    with ExitStack() as stack:
        yield cache(lambda address: stack.enter_context(grpc.insecure_channel(address, options=MESSAGES)))


@pytest.fixture
def name_table(channel_to: Callable[[str], grpc.Channel]) -> Iterator[Callable[..., str]]:
    """Names a table that no other test uses, on the servers at one or several addresses. It is dropped at the end."""
    named: list[tuple[str, str]] = []

    def name(*addresses: str) -> str:
        table = f"compliance-{os.getpid()}-{next(_numbers)}"
        named.extend((address, table) for address in addresses)
        return table

    yield name
    for address, table in named:
        drop(ReplayBufferServiceStub(channel_to(address)), table)


def drop(stub: ReplayBufferServiceStub, table: str) -> None:
    """Drops a table, if it is there."""
    try:
        stub.DropTable(pb.DropTableRequest(table=table), timeout=30)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


@pytest.fixture
def table(address: str, name_table: Callable[[str], str]) -> str:
    """The name of a table on the server under test."""
    return name_table(address)


@pytest.fixture
def stub(address: str, channel_to: Callable[[str], grpc.Channel]) -> ReplayBufferServiceStub:
    """The generated code, for the server under test."""
    return ReplayBufferServiceStub(channel_to(address))


@pytest.fixture
def own_server(tmp_path) -> Callable[..., AbstractContextManager[str]]:
    """Starts a server with settings that a test needs: ``with own_server(max_streams=1) as address``."""
    if ADDRESS:
        pytest.skip("it needs a server with settings of its own")
    return partial(serve, tmp_path)


@pytest.fixture
def in_process() -> Iterator[MakeBuffer]:
    """Makes buffers in process, which others are compared with."""
    pytest.importorskip("tdreplay_server")
    with ExitStack() as stack:
        yield lambda buffer_size, **options: stack.enter_context(open_in_process(None, "", buffer_size, **options))
