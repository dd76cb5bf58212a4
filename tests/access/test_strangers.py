"""Calls of nobody: however many come, they are refused in one thread, and the log tells how many without a line for each."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone

import grpc
import pytest
from certificates import bearer, issued

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.access.roles import Role

CALLS = 400
MOST_LINES = 20
"""Of one client within a second."""


@pytest.fixture
def token(tmp_path) -> str:
    return issued(tmp_path / "tokens.json", name="me", roles=(Role.ADMIN,), created=datetime.now(timezone.utc))


@pytest.fixture
def stub(tmp_path, token) -> Iterator[ReplayBufferServiceStub]:
    with (
        ReplayServer(ServerConfig(address="127.0.0.1:0", tokens_file=tmp_path / "tokens.json")) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield ReplayBufferServiceStub(channel)


def test_a_flood_of_calls_that_nobody_knows_is_counted_in_the_log_and_takes_one_thread(stub, token, caplog):
    caplog.set_level(logging.INFO, "tdreplay")
    before = {*threading.enumerate()}  # Those of servers that stopped just now end a little later.
    start = time.monotonic()
    calls = [stub.Add.future(pb.AddRequest(), metadata=bearer("tdr_wrong"), timeout=60) for _ in range(CALLS)]
    assert {call.exception(60).code() for call in calls} == {grpc.StatusCode.UNAUTHENTICATED}
    seconds = int(time.monotonic() - start) + 2  # Of the clock: the flood begins and ends within one.
    names = [thread.name for thread in {*threading.enumerate()} - before]
    assert sum(name.startswith("tdreplay-stranger") for name in names) == 1
    assert not any(name.startswith("tdreplay-call") for name in names)
    time.sleep(1.1)  # Until the second is over in which the last ones came.
    with suppress(grpc.RpcError):
        stub.ListTables(pb.ListTablesRequest(), timeout=20)
    shown = [record for record in caplog.records if "call refused" in record.getMessage()]
    more = [int(found[1]) for record in caplog.records if (found := re.search(r"more=(\d+)", record.getMessage()))]
    assert len(shown) <= MOST_LINES * seconds + 1  # The last one is that of the call above.
    assert len(shown) + sum(more) == CALLS + 1
    assert stub.ListTables(pb.ListTablesRequest(), metadata=bearer(token), timeout=20).tables == []


@pytest.mark.parametrize("metadata", [[("authorization", "Bearer tdr_wrong"), "good"], ["good", ("authorization", "Bearer tdr_wrong")]], ids=str)
def test_of_two_tokens_the_last_one_counts(stub, token, metadata):
    (good,) = bearer(token)
    sent = [good if entry == "good" else entry for entry in metadata]
    if sent[-1] == good:
        assert stub.ListTables(pb.ListTablesRequest(), metadata=sent, timeout=20).tables == []
        return
    with pytest.raises(grpc.RpcError) as raised:
        stub.ListTables(pb.ListTablesRequest(), metadata=sent, timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
