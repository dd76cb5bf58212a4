"""The buffer for asyncio in many tasks: what slow, cancelled and closed calls leave behind, in which loop and thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable

import pytest
import torch

from conftest import numbers, rows
from tdreplay.errors import ClosedError, ReplayError
from tdreplay_client import (
    AsyncReplayBuffer,
    Queue,
    RemoteReplayBuffer,
)

PROMPT = 5.0
"""Seconds in which something ends that must not wait for a timeout of `FOREVER`. The machine may be busy."""
FOREVER = 60.0


def run(main: Callable[..., object]):
    return asyncio.run(main())


# -- tasks ------------------------------------------------------------------------------------------------------------------------------------


def test_many_tasks_use_one_buffer_and_each_ones_rows_stay_in_order(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=10_000) as buffer, buffer.writer(flush_rows=3, max_in_flight=2) as writer:

            async def act(task: int) -> None:
                for step in range(50):
                    await writer.append({"task": task, "step": step})
                    if step % 25 == 0:
                        await buffer.add({"task": -1, "step": step})

            await asyncio.gather(*(act(task) for task in range(20)))
            await writer.flush()
            stored = await buffer.sample_all()
            for task in range(20):
                assert stored["step"][stored["task"] == task].tolist() == list(range(50))
            assert len(stored) == 20 * 52
            many = await asyncio.gather(*(buffer.sample_batch(8) for _ in range(50)))
            assert {len(batch) for batch in many} == {8}

    run(main)


def test_waiting_draws_take_no_thread_from_the_inserts_that_they_wait_for(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100, timeout=FOREVER) as buffer:
            waiting = [asyncio.create_task(buffer.sample_batch(2, wait=True)) for _ in range(30)]
            await asyncio.sleep(0)
            await asyncio.wait_for(buffer.add_batch(rows(5)), PROMPT)
            assert len(await asyncio.wait_for(asyncio.gather(*waiting), PROMPT)) == 30

    run(main)


def test_the_event_loop_goes_on_while_a_full_writer_waits(address, table):
    """A queue of two rows takes no more: `append` waits for a draw, which another task of the same loop makes."""

    async def main():
        limiter = Queue(2)
        async with AsyncReplayBuffer(address, table=table, buffer_size=2, rate_limiter=limiter, sampler="fifo", max_times_sampled=1) as buffer:
            async with buffer.writer(flush_rows=1, max_in_flight=1) as writer:

                async def act():
                    for n in range(12):
                        await writer.append({"n": n})

                acting = asyncio.create_task(act())
                seen = [int((await buffer.sample_batch(1, wait=True))["n"]) for _ in range(12)]
                await acting
                assert seen == list(range(12))

    run(main)


# -- cancelled calls --------------------------------------------------------------------------------------------------------------------------


def test_a_timeout_ends_a_wait_at_once_and_leaves_the_buffer_whole(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100, timeout=FOREVER) as buffer:
            began = time.monotonic()
            for _ in range(20):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(buffer.sample_batch(2, wait=True), 0.02)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(buffer.wait_for(5), 0.02)
            batches = buffer.stream(2)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(batches), 0.2)
            assert time.monotonic() - began < PROMPT
            assert sum(thread.name == "tdreplay-reader" for thread in threading.enumerate()) < 15  # The 20 calls share one.
            await asyncio.wait_for(buffer.add_batch(rows(5)), PROMPT)
            assert len(await asyncio.wait_for(buffer.sample_batch(2, wait=True), PROMPT)) == 2
            assert len(await asyncio.wait_for(anext(batches), PROMPT)) == 2

    run(main)


@pytest.mark.parametrize("how", ["sample_batch", "stream"])
def test_rows_that_are_drawn_once_come_once_although_draws_are_cancelled(address, table, how):
    async def main():
        options = {"rate_limiter": Queue(50), "sampler": "fifo", "max_times_sampled": 1}
        async with AsyncReplayBuffer(address, table=table, buffer_size=50, timeout=FOREVER, **options) as buffer:
            batches = buffer.stream(1)
            take = {"sample_batch": lambda: buffer.sample_batch(1, wait=True), "stream": lambda: anext(batches)}[how]

            async def act():
                for n in range(40):
                    await buffer.add({"n": n})

            acting, seen, cancelled = asyncio.create_task(act()), [], 0
            while len(seen) < 40:
                try:
                    seen.append(int((await asyncio.wait_for(take(), 0.001 * (1 + cancelled % 7)))["n"]))
                except asyncio.TimeoutError:
                    cancelled += 1
            await acting
            assert (seen, cancelled > 0) == (list(range(40)), True)

    run(main)


def test_an_epoch_brings_each_row_once_although_steps_are_cancelled_and_a_token_is_right_in_between(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=200) as buffer:
            await buffer.add_batch(rows(200))
            seen: list[int] = []
            batches = await buffer.epochs(4, shuffle=True, seed=1)
            for turn in itertools.count():
                step = asyncio.ensure_future(anext(batches))
                await asyncio.sleep(0)
                if turn % 3 == 0:
                    step.cancel()
                try:
                    seen += numbers(await step)
                except asyncio.CancelledError:
                    token = await batches.state_dict()
                    assert batches.epoch == token["epoch"]
                    if turn % 5 == 0:
                        await batches.close()
                        batches = await buffer.epochs(4, shuffle=True, seed=1)
                        await batches.load_state_dict(token)
                except StopAsyncIteration:
                    break
            assert sorted(seen) == list(range(200))
            assert len(seen) == 200

    run(main)


def test_cancelled_appends_lose_no_other_row_and_what_they_lost_is_raised_by_the_next_call(address, table, caplog):
    async def main():
        options = {"rate_limiter": Queue(3), "sampler": "fifo", "max_times_sampled": 1}
        async with AsyncReplayBuffer(address, table=table, buffer_size=3, timeout=1.0, **options) as buffer:
            writer = await buffer.writer(flush_rows=1, max_in_flight=1)
            taken, cancelled = [0, 1, 2], []
            for n in taken:
                await writer.append({"n": n})
            for n in range(3, 8):
                try:
                    await asyncio.wait_for(writer.append({"n": n}), 0.1)
                    taken.append(n)
                except asyncio.TimeoutError:
                    cancelled.append(n)
            assert cancelled
            with pytest.raises(ReplayError) as caught:  # Nobody draws: what waits is not stored in time.
                await writer.close()
            lost = caught.value.rows["n"].tolist()
            stored = [int((await buffer.sample_batch(1))["n"]) for _ in range(3)]
            assert stored == [0, 1, 2]
            assert [*stored, *lost] == list(range(3 + len(lost)))
            assert set(taken) <= {*stored, *lost}
            assert f"did not store {len(lost)} rows" in caplog.text

    run(main)


def test_a_call_that_was_cancelled_before_its_turn_is_not_carried_out(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100) as buffer, buffer.writer() as writer:
            await writer.append({"n": -1})
            extends = [asyncio.create_task(writer.extend({"n": torch.full((2,), n)})) for n in range(10)]
            await asyncio.sleep(0)
            extends[-1].cancel()
            done = await asyncio.gather(*extends, return_exceptions=True)
            await writer.flush()
            stored = (await buffer.sample_all())["n"].tolist()
            expected = [-1, *itertools.chain(*([n, n] for n in range(9)))]
            assert isinstance(done[-1], asyncio.CancelledError)
            assert stored in (expected, [*expected, 9, 9])  # Its turn may have come by then; it is all or nothing.

    run(main)


# -- closing, loops, threads ------------------------------------------------------------------------------------------------------------------


def test_closing_ends_the_calls_that_run_and_stores_what_writers_have(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100, timeout=FOREVER) as buffer:
            writer = await buffer.writer(flush_seconds=FOREVER)
            empty = await AsyncReplayBuffer.open(address, table=f"{table}-empty", buffer_size=3, timeout=FOREVER)
            batches = await empty.stream(2)
            waiting = [asyncio.create_task(call) for call in (empty.sample_batch(2, wait=True), anext(batches))]
            await writer.append({"n": 1})
            await asyncio.sleep(0.05)
            await asyncio.wait_for(asyncio.gather(buffer.close(), empty.close(), empty.close()), PROMPT)
            for task in waiting:
                with pytest.raises((ClosedError, StopAsyncIteration)):
                    await asyncio.wait_for(task, PROMPT)
        with RemoteReplayBuffer(address, table=table) as sync:
            assert sync.sample_all()["n"].tolist() == [1]

    run(main)


def test_a_stream_is_closed_while_a_step_waits(address, table):
    async def main():
        async with AsyncReplayBuffer(address, table=table, buffer_size=100, timeout=FOREVER) as buffer:
            async with buffer.stream(2) as batches:
                step = asyncio.create_task(anext(batches))
                await asyncio.sleep(0.05)
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(step, PROMPT)
            assert [batch async for batch in batches] == []

    run(main)


def test_a_buffer_whose_server_is_not_there_is_closed_at_once():
    async def main():
        buffer = AsyncReplayBuffer("127.0.0.1:1", timeout=FOREVER)
        calls = [asyncio.create_task(buffer.size()), asyncio.create_task(buffer.sample_batch(3))]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await buffer.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < PROMPT

    run(main)


def test_a_buffer_outlives_its_loop_and_serves_others(address, table):
    buffer = AsyncReplayBuffer(address, table=table, buffer_size=100, timeout=FOREVER)
    batches = buffer.stream(1)

    async def wait():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(anext(batches), 0.05)

    asyncio.run(wait())
    loop = asyncio.new_event_loop()
    task = loop.create_task(buffer.sample_batch(1, wait=True))
    loop.run_until_complete(asyncio.sleep(0.02))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()  # A thread still waits for what this loop asked for.
    found: list[int] = []

    async def use():
        await buffer.add({"n": 7})
        found.append(int((await anext(batches))["n"]))

    others = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(FOREVER)
    assert found == [7, 7]
    asyncio.run(buffer.close())


def test_no_thread_stays_of_what_was_closed_or_forgotten(address, table):
    def own() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "tdreplay-reader"}

    before = own()

    async def use(*, close: bool):
        buffer = AsyncReplayBuffer(address, table=table, buffer_size=100)
        await asyncio.gather(*(buffer.add({"n": n}) for n in range(20)))
        writer, batches = buffer.writer(), buffer.stream(2)
        await writer.append({"n": 20})
        await anext(batches)
        await anext(buffer.epochs(4))
        if close:
            await writer.close()
            await batches.close()
            await buffer.close()

    for close in (True, False):
        asyncio.run(use(close=close))
        deadline = time.monotonic() + 20
        while own() - before:
            gc.collect()
            assert time.monotonic() < deadline, own() - before
            time.sleep(0.01)
