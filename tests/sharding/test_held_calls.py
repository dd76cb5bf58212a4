"""Single batches over calls that are held open: every row that a shard draws is in a batch, and an older server is asked as it can be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch
from shard_servers import fill_unevenly, shard_servers

from tdreplay.errors import UnimplementedError
from tdreplay.shard_ids import shard_numbers
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(3) as found:
        yield found


numbers = itertools.count()


@pytest.fixture
def table() -> str:
    return f"held-{next(numbers)}"


def sample_counts(addresses: list[str], table: str) -> list[int]:
    counts = []
    for address in addresses:
        with RemoteReplayBuffer(address, table=table) as shard:
            counts.append(shard.describe().sample_count)
    return counts


@pytest.mark.parametrize("seed", [None, 3], ids=["by chance", "seeded"])
def test_shards_draw_the_rows_of_the_batches_and_no_others(addresses, table, seed):
    fill_unevenly(addresses, table)
    with ShardedReplayBuffer(addresses, table=table, seed=seed) as buffer:
        got = [0, 0, 0]
        for rows in (12, 12, 12, 300, 300, 12, 300):
            for number in shard_numbers(buffer.sample_batch(rows)["row_id"].numpy()):
                got[number] += 1
        assert sample_counts(addresses, table) == got


def test_several_kinds_of_batches_and_threads_share_the_calls(addresses, table):
    fill_unevenly(addresses, table)
    with ShardedReplayBuffer(addresses, table=table) as buffer, ThreadPoolExecutor(8) as threads:

        def sample(number: int) -> int:
            return len(buffer.sample_batch(8 + number % 6, uniform=number % 2 == 0, seed=number if number % 3 else None))

        assert sum(threads.map(sample, range(300))) == sum(sample_counts(addresses, table)) == sum(8 + number % 6 for number in range(300))


def test_a_shard_that_was_reset_or_dropped_is_drawn_from_as_it_is_now(addresses, table):
    fill_unevenly(addresses, table, (5, 5, 5))
    with ShardedReplayBuffer(addresses, table=table) as buffer:
        for _ in range(3):
            buffer.sample_batch(50)
        with RemoteReplayBuffer(addresses[2], table=table) as shard:
            shard.drop()
        with RemoteReplayBuffer(addresses[2], table=table, buffer_size=1000) as shard:
            shard.add_batch({"number": torch.arange(100, 105)})
        batch = buffer.sample_batch(200)
        assert set(batch["number"].tolist()) <= {*range(10), *range(100, 105)}
        assert {*range(100, 105)} <= set(buffer.sample_batch(300)["number"].tolist())


# -- older servers ----------------------------------------------------------------------------------------------------------------------------


def as_older(request: Any) -> Any:
    """What a server sees that does not know the fields of shards."""
    for name in ("next", "wants_totals"):
        if name in request.DESCRIPTOR.fields_by_name:
            request.ClearField(name)
    return request


@contextmanager
def older_server(address: str) -> Iterator[str]:
    """The address of a server in front of another one, which knows neither totals nor named batches."""
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(32) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, dict(map(forwarded(channel), SERVICE.methods))),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait(30)


def forwarded(channel: grpc.Channel) -> Any:
    def of(method: Any) -> tuple[str, Any]:
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        request = getattr(pb, method.input_type.name)
        inner = getattr(channel, kind)(f"/{SERVICE.full_name}/{method.name}")

        def older(raw: bytes) -> bytes:
            return raw if "block" in request.DESCRIPTOR.fields_by_name else as_older(request.FromString(raw)).SerializeToString()

        def call(raw: Any, context: grpc.ServicerContext) -> Any:
            answer = inner(map(older, raw) if method.client_streaming else older(raw), timeout=30)
            if method.server_streaming:
                context.add_callback(answer.cancel)
                answer.initial_metadata()
                context.send_initial_metadata(())
            return answer

        return method.name, getattr(grpc, f"{kind}_rpc_method_handler")(call)

    return of


def test_an_older_server_is_not_asked_for_batches_that_it_does_not_know(addresses, table):
    fill_unevenly(addresses, table)
    with older_server(addresses[0]) as older, ShardedReplayBuffer([older], table=table, transport="grpc", timeout=5) as buffer:
        for _ in range(5):
            assert len(buffer.sample_batch(6)) == 6


def test_an_older_server_cannot_be_one_of_several_shards(addresses, table):
    fill_unevenly(addresses, table)
    with older_server(addresses[0]) as older, ShardedReplayBuffer([older, addresses[1]], table=table, timeout=5) as buffer:
        with pytest.raises(UnimplementedError, match="older version"):
            buffer.sample_batch(6)
