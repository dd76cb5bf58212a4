"""The server under test: any, known by its address alone."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from compliance.kinds import ADDRESS, ON_THE_WIRE
from compliance.server.stock_client import Client
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub


@pytest.fixture(params=["outside"] if ADDRESS else ON_THE_WIRE)
def address(request: pytest.FixtureRequest, address_of: Callable[[str], str]) -> str:
    """Of the server under test."""
    return address_of(request.param)


@pytest.fixture
def client(address: str, table: str, channel_to: Callable[[str], grpc.Channel]) -> Client:
    """The calls of a table that is not there yet."""
    channel = channel_to(address)
    return Client(channel, ReplayBufferServiceStub(channel), table)
