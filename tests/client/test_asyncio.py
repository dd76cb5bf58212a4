"""The buffer for asyncio has the surface of the sync one, and its calls give the same."""

from __future__ import annotations

import asyncio
import copy
import inspect
import itertools
import pickle
import threading
import time
from collections.abc import Callable

import pytest
import torch

from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.epochs import Epochs
from tdreplay.errors import ClosedError, EmptyTableError, FailedPreconditionError, InvalidArgumentError, RateLimitedError, SchemaError
from tdreplay_client import (
    AsyncBatchStream,
    AsyncEpochs,
    AsyncReplayBuffer,
    AsyncTrajectoryWriter,
    AsyncWriter,
    BatchStream,
    RemoteReplayBuffer,
    TrajectoryWriter,
    Writer,
)


def run(main: Callable[..., object]):
    return asyncio.run(main())


# -- the surface ------------------------------------------------------------------------------------------------------------------------------

FACES = [
    (RemoteReplayBuffer, AsyncReplayBuffer),
    (BatchStream, AsyncBatchStream),
    (Epochs, AsyncEpochs),
    (Writer, AsyncWriter),
    (TrajectoryWriter, AsyncTrajectoryWriter),
]
OPENED = {"stream", "epochs", "create_epoch_iterator", "writer", "trajectory_writer"}
"""What is called without await: it gives what is opened later."""
INSIDE = {
    BatchStream: {"break_off", "gives_at_once", "send_priorities"},
    Writer: {"append_given", "columns", "extend_given", "mark", "takes_at_once"},
    TrajectoryWriter: {"takes_at_once"},
}
"""What other classes of the client use, and users do not."""
OF_ASYNCIO = {AsyncReplayBuffer: {"open"}, AsyncEpochs: {"shared"}, AsyncBatchStream: {"shared"}}
"""What the sync class lacks, has in a subclass alone, or as an attribute of its objects."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("sync", "face"), FACES, ids=lambda kind: kind.__name__)
def test_both_have_the_same_names(sync, face):
    assert public(face) - OF_ASYNCIO.get(face, set()) == public(sync) - INSIDE.get(sync, set())


def parameters(function: Callable[..., object]) -> list[tuple[str, object, object, object]]:
    return [(p.name, p.kind, p.default, p.annotation) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("sync", "face"), FACES, ids=lambda kind: kind.__name__)
def test_both_take_the_same_arguments_and_say_the_same_of_them(sync, face):
    for name in public(sync) - INSIDE.get(sync, set()):
        method = getattr(sync, name)
        if callable(method):
            own = getattr(face, name)
            assert parameters(own) == parameters(method), name
            assert inspect.iscoroutinefunction(own) is (name not in OPENED), name
            assert inspect.getdoc(method).partition("\n")[0] in inspect.getdoc(own), name


def test_the_constructor_takes_what_the_sync_one_takes():
    assert inspect.signature(AsyncReplayBuffer) == inspect.signature(RemoteReplayBuffer)
    assert parameters(AsyncReplayBuffer.open) == parameters(RemoteReplayBuffer)
    with pytest.raises(TypeError, match="nothing"):
        AsyncReplayBuffer("127.0.0.1:1", nothing=3)


def test_properties_that_ask_the_server_are_coroutines():
    asking = {"buffer_size", "data_size", "durability", "pointer", "size", "storing_device"}
    assert {name for name in public(BaseReplayBuffer) if isinstance(getattr(BaseReplayBuffer, name), property)} == asking | {"device"}
    assert all(inspect.iscoroutinefunction(getattr(AsyncReplayBuffer, name)) for name in asking)


# -- calls ------------------------------------------------------------------------------------------------------------------------------------


def test_each_call_gives_what_the_sync_one_gives(address, table, tmp_path):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100, sampler="prioritized", trajectories=True) as buffer:
            async with buffer.trajectory_writer() as writer:
                for step in range(10):
                    ended = step % 5 == 4
                    await writer.append(
                        {"obs": torch.full((2,), float(step)), "action": step, "reward": 1.0, "terminated": ended, "truncated": False},
                        final=torch.zeros(2),
                    )
                assert len(writer.episode_ids) == 1
            await buffer.wait_for(12)
            with RemoteReplayBuffer(address, table=table) as sync:
                assert await buffer.state() == sync.state()
                assert (await buffer.describe()).config == sync.describe().config
                assert (await buffer.size(), await buffer.data_size(), await buffer.pointer()) == (len(sync), sync.data_size, sync.pointer)
                assert (await buffer.buffer_size(), await buffer.durability()) == (sync.buffer_size, sync.durability)
                assert (await buffer.storing_device(), buffer.device, buffer.table) == (sync.storing_device, sync.device, sync.table)
                assert (await buffer.sample_all() == sync.sample_all()).all()
                assert (await buffer.sample_by_index([-1, 0]) == sync.sample_by_index([-1, 0])).all()
                assert (await buffer.sample_by_index_fields([3], ["obs"]) == sync.sample_by_index_fields([3], ["obs"])).all()
                assert (await buffer.sample_batch(8, seed=3) == sync.sample_random(8, seed=3)).all()
                assert (await buffer.sample_random(8, seed=4, uniform=True) == sync.sample_batch(8, seed=4, uniform=True)).all()
                episodes = await buffer.episodes()
                assert episodes == sync.episodes()
                assert (await buffer.episode(episodes[0].episode_id) == sync.episode(episodes[0].episode_id)).all()
                told: list[tuple[int, int, int]] = []
                await buffer.sample_all(progress=lambda done, total: told.append((threading.get_ident(), done, total)))
                await asyncio.sleep(0)
                assert told[-1] == (threading.get_ident(), 10, 10)
                assert await buffer.calculate_num_batches(5) == sync.calculate_num_batches(5)
                assert await AsyncReplayBuffer.tables(address) == RemoteReplayBuffer.tables(address)
                assert await buffer.update_priorities([0, 1], [2.0, 3.0]) == sync.update_priorities([0, 1], [2.0, 3.0])
            await buffer.save(tmp_path / "saved")
            await buffer.load(tmp_path / "saved")
            await buffer.reset(50)
            assert (await buffer.size(), await buffer.buffer_size()) == (0, 50)
            await buffer.drop()
        assert table not in await AsyncReplayBuffer.tables(address)

    run(main)


def test_rows_go_in_by_each_way_and_come_out_by_each_way(address, table):
    async def main():
        buffer = await AsyncReplayBuffer.open(address, table=table, buffer_size=100)
        await buffer.add(rows(1, 0)[0])
        await buffer.add_batch(rows(4, 1))
        async with buffer.writer(flush_rows=4) as writer:
            for n in range(5, 25):
                await writer.append(rows(1, n)[0])
            await writer.extend(rows(10, 25))
            await writer.flush()
            assert await buffer.size() == 35
            assert (writer.is_open, writer.shared) == (True, False)
        with pytest.raises(ClosedError):
            await writer.append(rows(1)[0])
        assert numbers(await buffer.sample_all()) == list(range(35))
        read = [numbers(batch) async for batch in buffer.create_epoch_iterator(10)]
        assert list(itertools.chain(*read)) == list(range(35))
        assert await buffer.get_steps_and_iterator(2, 0, 10) == 8
        read = [numbers(await buffer.get_next_batch(10)) for _ in range(8)]
        assert sorted(itertools.chain(*read)) == sorted([*range(35)] * 2)
        with pytest.raises(StopAsyncIteration):
            await buffer.get_next_batch(10)
        assert await buffer.get_steps_and_iterator(0, 3, 10) == 3
        assert len(await buffer.get_next_batch(7)) == 7
        async with buffer.stream(16, seed=5) as batches:
            first = [numbers(await anext(batches)) for _ in range(3)]
            token = await batches.state_dict()
            fourth = numbers(await anext(batches))
        async with buffer.stream(16, seed=6) as batches:
            await batches.load_state_dict(token)
            assert numbers(await anext(batches)) == fourth
        with RemoteReplayBuffer(address, table=table) as sync, sync.stream(16, seed=5) as expected:
            assert [numbers(next(expected)) for _ in range(4)] == [*first, fourth]
        await buffer.close()
        await buffer.close()
        for call in (buffer.size, lambda: buffer.sample_batch(3), lambda: anext(buffer.stream(3))):
            with pytest.raises(ClosedError):
                await call()

    run(main)


def test_priorities_are_updated_through_a_stream(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=10, sampler="max_heap") as buffer:
            await buffer.add_batch(rows(10))
            async with buffer.stream(1) as batches:
                for row in (3, 7):
                    found = await buffer.sample_by_index([row])
                    await batches.update_priorities(found, [10.0 * row])
                deadline = time.monotonic() + 20
                while numbers(await anext(batches)) != [7]:
                    assert time.monotonic() < deadline
                assert batches.updated.updated == 2

    run(main)


def test_errors_are_those_of_the_sync_buffer(address, table):
    async def main():
        with pytest.raises(InvalidArgumentError, match="buffer_size"):
            await AsyncReplayBuffer.open(address, table=table, buffer_size=0)
        unopened = AsyncReplayBuffer(address, table=table, buffer_size=10)
        with pytest.raises(FailedPreconditionError, match="not open yet"):
            _ = unopened.device
        async with unopened as buffer:
            with pytest.raises(EmptyTableError):
                await buffer.sample_batch(3)
            with pytest.raises(RateLimitedError, match="0 are there"):
                await buffer.wait_for(1, timeout=0.1)
            await buffer.add(rows(1)[0])
            with pytest.raises(SchemaError):
                await buffer.add({"other": 1.0})
            with pytest.raises(TypeError):
                await buffer.add()
            with pytest.raises(TypeError):
                buffer.stream()
            async with buffer.writer() as writer:
                await writer.append(rows(1)[0])
                with pytest.raises(SchemaError):
                    await writer.append({"other": 1.0})
                await writer.append(rows(1)[0])
            assert await buffer.size() == 3

    run(main)


def test_an_opened_buffer_is_pickled_and_copied_and_one_that_was_never_opened_too(address, table):
    async def main():
        fresh = AsyncReplayBuffer(address, table=table, buffer_size=10, seed=3)
        async with pickle.loads(pickle.dumps(fresh)) as buffer:  # noqa: S301 - it is the test's own.
            await buffer.add_batch(rows(10))
            async with copy.copy(buffer) as other:
                expected = await buffer.sample_batch(5)
                assert (await other.sample_batch(5) == expected).all()
            with pytest.raises(TypeError, match="open a stream there"):
                pickle.dumps(buffer.stream(3))
            with pytest.raises(TypeError, match="open a writer there"):
                pickle.dumps(buffer.writer())

    run(main)
