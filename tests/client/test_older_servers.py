"""A server of an older version, which knows no trajectories: a client that asks for them is told so, and nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from given_answers import answering_server

from children import completed
from tdreplay.errors import UnimplementedError
from tdreplay.trajectories import Trajectories
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer

CONFIG = pb.TableConfig(buffer_size=10, storing_device="cpu", sampler=pb.Sampler(name="uniform"), rate_limiter=pb.RateLimiter(name="none"))
SAYS = {"with a config": CONFIG, "without a config": None}
"""What a server says of its tables: versions before samplers say no config."""


@contextmanager
def older_server(config: pb.TableConfig | None) -> Iterator[tuple[str, list[str]]]:
    """Gives the address of a server that knows no trajectories, and the names of the tables that it was asked to make."""
    made: list[str] = []

    def create(request: pb.CreateTableRequest, _context: grpc.ServicerContext) -> pb.CreateTableResponse:
        made.append(request.table)
        return pb.CreateTableResponse(created=True)

    def describe(_request: pb.DescribeRequest, _context: grpc.ServicerContext) -> pb.DescribeResponse:
        return pb.DescribeResponse(buffer_size=10, storing_device="cpu", generation_id="a", config=config)

    with answering_server(CreateTable=create, Describe=describe) as address:
        yield address, made


@pytest.fixture(params=SAYS)
def older(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    with older_server(SAYS[request.param]) as server:
        yield server


@pytest.mark.parametrize("trajectories", [True, Trajectories(("done",)), {"reward": "r"}])
@pytest.mark.parametrize("more", [{"buffer_size": 10}, {}])
def test_it_makes_no_table_in_place_of_one_with_trajectories(older, trajectories, more):
    address, made = older
    with pytest.raises(UnimplementedError, match=f"server {address} is of an older version, which knows no trajectories"):
        RemoteReplayBuffer(address, table="steps", trajectories=trajectories, timeout=10, **more)
    assert made == []


def test_the_command_is_told_so_too(older):
    address, made = older
    done = completed("tdreplay", "table", "create", "steps", "--buffer-size", "10", "--trajectories", "--address", address)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "older version, which knows no trajectories" in done.stderr
    assert made == []


@pytest.mark.parametrize("asked", [None, False])
def test_plain_rows_can_be_asked_for_in_any_case(older, asked):
    address, made = older
    with RemoteReplayBuffer(address, table="plain", buffer_size=10, trajectories=asked, timeout=10) as buffer:
        assert made == ["plain"]
        described = buffer.describe()
        assert (described.config.trajectories, described.trajectories) == (False, None)


def test_a_server_of_this_version_says_of_each_table_whether_it_has_trajectories(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10, trajectories=True, timeout=10) as buffer:
        assert buffer.describe().config.trajectories == Trajectories()
