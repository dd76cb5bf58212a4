"""What disturbs streams over shards: Ctrl-C, shards that come, go, stand still, and are started again with other rows."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from shard_processes import Shards
from shard_servers import fill_unevenly, numbered, shard_servers
from tensordict import TensorDict

from chi_square import deviation
from conftest import freeze, thaw
from interrupts import interrupted_at, interrupting
from tdreplay.errors import RateLimitedError, ReplayError, RowIdError, ServerUnavailableError, TableNotFoundError
from tdreplay.limits import BLOCK_BYTES
from tdreplay.rate_limiters import MinSize, SamplesPerInsert
from tdreplay.shard_ids import shard_numbers
from tdreplay_client import RemoteReplayBuffer, ShardedReplayBuffer
from tdreplay_client.sharding.drawn_stream import DrawnStream
from tdreplay_client.sharding.pull_streams import MOST_AHEAD, PullSize
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_client.sharding.stream import ShardedStream

PAUSE = 2.0 if os.environ.get("TDREPLAY_LONG") else 4.0
"""The most seconds for which a learner pauses where shards are lost and the buffer goes on: 2, in the short form some more, for a busy machine."""


def shards_of(batch: TensorDict) -> set[int]:
    return set(shard_numbers(batch["row_id"].numpy()).tolist())


def until_it_comes(batches: Iterator[TensorDict], wanted: set[int], seconds: float = 30.0) -> TensorDict:
    """The first batch that has rows of exactly these shards."""
    until = time.monotonic() + seconds
    while shards_of(batch := next(batches)) != wanted:
        assert time.monotonic() < until, f"batches do not come from {wanted}, but from {shards_of(batch)}"
    return batch


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tdreplay-reader"}


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    with shard_servers(3) as found:
        yield found


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestInterrupts:
    """Ctrl-C: the stream goes on with the batch that nobody got, and no thread is left."""

    def test_no_batch_of_a_seed_is_left_out(self, addresses, table):
        fill_unevenly(addresses, table, (40, 100, 70))
        with ShardedReplayBuffer(addresses, table=table, timeout=20) as buffer:
            with buffer.stream(32, seed=5) as batches:
                expected = [next(batches)["row_id"].tolist() for _ in range(120)]
            before = readers()
            with buffer.stream(32, seed=5) as batches:
                found: list[list[int]] = []
                with interrupting(ShardedStream.__next__.__code__, 0.004, 40) as hits:
                    while len(found) < 120:
                        try:
                            batch = next(batches)
                        except KeyboardInterrupt:
                            continue
                        found.append(batch["row_id"].tolist())
            assert hits[0] >= 5
            assert found == expected
            for thread in readers() - before:
                thread.join(10)
                assert not thread.is_alive()

    def test_next_may_be_interrupted_at_any_line(self, addresses, table):
        fill_unevenly(addresses, table, (40, 100, 70))
        with ShardedReplayBuffer(addresses, table=table, timeout=20) as buffer:
            with buffer.stream(16, seed=6, prefetch=1) as batches:
                expected = [next(batches)["row_id"].tolist() for _ in range(100)]
            with buffer.stream(16, seed=6, prefetch=1) as batches:
                found: list[list[int]] = []
                for step in range(1, 400, 7):
                    if not interrupted_at(step, "tdreplay_client.sharding", lambda: found.append(next(batches)["row_id"].tolist())):
                        continue
                    found.append(next(batches)["row_id"].tolist())
            assert 50 < len(found) <= 100
            assert found == expected[: len(found)]

    def test_updates_of_priorities_may_be_interrupted(self, addresses, table):
        fill_unevenly(addresses, table, (40, 100, 70), priorities=[1.0] * 210, sampler="prioritized")
        with ShardedReplayBuffer(addresses, table=table, timeout=20) as buffer, buffer.stream(32) as batches:
            for step in range(1, 60, 3):
                batch = next(batches)
                interrupted_at(step, "tdreplay_client.sharding", lambda batch=batch: batches.update_priorities(batch, 2.0))
            sent = next(batches)
            batches.update_priorities(sent, 3.0)
            until = time.monotonic() + 20
            while not (sent["row_id"].unsqueeze(1) == (batch := next(batches))["row_id"]).any() or not (batch["priority"] == 3.0).any():
                assert time.monotonic() < until

    def test_no_row_of_a_queue_is_lost(self, addresses, table):
        with ShardedReplayBuffer(addresses, table=table, buffer_size=600, max_times_sampled=1, sampler="fifo", timeout=10) as buffer:
            buffer.add_batch(numbered(0, 600))
            found: list[int] = []
            with buffer.stream(6) as batches, interrupting(DrawnStream.__next__.__code__, 0.007, 30) as hits:
                while len(found) < 600:
                    try:
                        batch = next(batches)
                    except KeyboardInterrupt:
                        continue
                    found += batch["number"].tolist()
            assert hits[0] >= 3
            assert sorted(found) == list(range(600))


# -- what is drawn --------------------------------------------------------------------------------------------------------------------------------


def test_a_draw_that_a_rate_limiter_holds_up_is_not_made_again_until_it_suits_the_limiter(addresses, table):
    """Shard 0 lets few rows out at a time. Whoever asks again gets the batch that was drawn, and not one with fewer rows of it."""
    counts = np.zeros(2)
    limiter = SamplesPerInsert(2.0, 1, 400.0)
    with ShardedReplayBuffer(addresses[:2], table=table, buffer_size=10_000, rate_limiter=limiter, timeout=0.7) as buffer, ExitStack() as stack:
        ones = [stack.enter_context(RemoteReplayBuffer(address, table=table)) for address in addresses[:2]]
        for one in ones:
            one.add_batch(numbered(0, 90))
        batches, refused = stack.enter_context(buffer.stream(16)), 0
        while counts.sum() < 16 * 60:
            try:
                counts += np.bincount(shard_numbers(next(batches)["row_id"].numpy()), minlength=2)
            except RateLimitedError:
                refused += 1
                for one in ones:
                    one.add_batch(numbered(0, 20))
    assert refused >= 2
    assert abs(deviation(counts, np.array([0.5, 0.5]))) < 4


def test_fields_of_a_user_that_have_the_names_of_what_a_draw_says_stay_as_they_are(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, on_loss="degrade") as buffer:
        number = torch.arange(90)
        names = ("probability", "priority", "table_size", "min_probability", "lost_shards")
        buffer.add_batch(TensorDict({"number": number, **{name: number + place for place, name in enumerate(names)}}, [90]))
        with buffer.stream(32) as batches:
            for batch in (next(batches), buffer.sample_batch(32)):
                assert all(torch.equal(batch[name], batch["number"] + place) for place, name in enumerate(names))


def test_over_one_shard_a_seed_gives_the_batches_of_one_server(addresses, table):
    fill_unevenly(addresses[:1], table, (70,))
    with RemoteReplayBuffer(addresses[0], table=table) as one, ShardedReplayBuffer(addresses[:1], table=table) as buffer:
        with one.stream(16, seed=4) as expected, buffer.stream(16, seed=4, prefetch=5) as batches:
            for _ in range(5):
                assert torch.equal(next(batches)["row_id"], next(expected)["row_id"])
        with buffer.stream(16, seed=4) as batches:
            assert torch.equal(next(batches)["row_id"], buffer.sample_batch(16, seed=4)["row_id"])


def test_what_is_drawn_ahead_is_bounded():
    for shards, prefetch, seeded, shared in itertools.product((1, 4, 100), (1, 2, 16, 1000), (False, True), (False, True)):
        for batch_size, row_bytes in ((1, 100), (256, 165), (256, 56_000), (1_000, 2_000), (8, 3 << 20)):
            size = PullSize.of(batch_size, batch_size * row_bytes, shards, prefetch, seeded=seeded, counted=False, shared=shared)
            ahead = shards * size.rows * size.ahead
            assert ahead <= max(MOST_AHEAD * prefetch, 4) * batch_size + 2 * 128 * shards, (shards, prefetch, batch_size, row_bytes)
            assert size.rows * row_bytes <= max(1 << 20, 2 * batch_size * row_bytes)
            if shards > 1 and not shared:
                assert size.rows == 1 or size.rows * row_bytes <= BLOCK_BYTES, "it comes as one message"


def test_a_stream_is_of_its_process(addresses, table):
    fill_unevenly(addresses, table, (5, 5, 5))
    with ShardedReplayBuffer(addresses, table=table) as buffer, buffer.stream(4) as batches:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises((ReplayError, TypeError), match="process"):
                copied(batches)


def test_priorities_of_a_shard_that_never_was_are_refused(addresses, table):
    fill_unevenly(addresses, table, (5, 5, 5), priorities=[1.0] * 15, sampler="prioritized")
    with ShardedReplayBuffer(addresses, table=table) as buffer, buffer.stream(4) as batches:
        with pytest.raises(RowIdError, match="shard 9"):
            batches.update_priorities(TensorDict({"row_id": torch.tensor([9 << 48])}, [1]), 1.0)
        next(batches)


# -- shards that come and go ----------------------------------------------------------------------------------------------------------------------


class Listed:
    """A directory that says what it was told."""

    def __init__(self, addresses: Sequence[str], numbers: Sequence[int]) -> None:
        self._addresses, self.numbers = addresses, numbers

    def places(self) -> Sequence[ShardPlace]:
        """Those of the numbers."""
        return [ShardPlace(number, self._addresses[number]) for number in self.numbers]


def test_shards_join_and_leave_while_batches_are_taken(addresses, table):
    fill_unevenly(addresses, table, (50, 50, 50), priorities=[1.0] * 150, sampler="prioritized")
    directory = Listed(addresses, [0, 1])
    with ShardedReplayBuffer(directory, table=table) as buffer, buffer.stream(48) as batches:
        until_it_comes(batches, {0, 1})
        directory.numbers = [0, 1, 2]
        old = until_it_comes(batches, {0, 1, 2})
        directory.numbers = [0, 2]
        deadline, seen = time.monotonic() + 20, {0, 1, 2}
        while seen != {0, 2}:
            batch = next(batches)
            seen, slots = shards_of(batch), batch["index"] - (local := batch["row_id"] & (1 << 48) - 1) * 3
            at = torch.tensor([0, 1, 2])[batch["row_id"] >> 48]
            of_two = batch["index"] == local * 2 + torch.tensor([0, -1, 1])[batch["row_id"] >> 48]
            # A slot follows from the place of the shard, and all slots of a batch from the same places.
            assert bool((slots == at).all()) or bool(of_two.all()), (
                "slots follow from the places of the shards, and all of a batch from the same ones"
            )
            assert time.monotonic() < deadline
        gone = int((old["row_id"] >> 48 == 1).sum())
        batches.update_priorities(old, 2.0)
        while sum(batches.updated) < 48:
            next(batches)
            assert time.monotonic() < deadline
        assert batches.updated == (48 - gone, gone)


# -- shards that are lost -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Iterator[Shards]:
    shards = Shards(tmp_path_factory.mktemp("shards"), 3)
    try:
        yield shards
    finally:
        shards.close()


@pytest.fixture
def shards(processes: Shards) -> Iterator[Shards]:
    """Three servers, which a test may kill and freeze."""
    try:
        yield processes
    finally:
        for number, server in processes.servers.items():
            if server.child.process.is_alive():
                thaw(server.pid)
            else:
                processes.start(number)


def test_batches_go_on_however_many_shards_are_lost_and_how(shards, table):
    fill_unevenly(shards.addresses, table, (60, 60, 60), priorities=[1.0] * 180, sampler="prioritized")
    with ShardedReplayBuffer(shards.addresses, table=table, on_loss="degrade", timeout=30) as buffer, buffer.stream(64) as batches:
        last = until_it_comes(batches, {0, 1, 2})

        def longest(wanted: set[int]) -> float:
            """The longest time that a batch took, until they come from these shards alone."""
            nonlocal last
            most, found, until = 0.0, set[int](), time.monotonic() + 30
            while found != wanted:
                begun = time.monotonic()
                found = shards_of(batch := next(batches))
                most = max(most, time.monotonic() - begun)
                batches.update_priorities(batch, 1.0)
                last = batch if found == {0, 1, 2} else last
                assert time.monotonic() < until
            return most

        for number in (1, 2):
            freeze(shards.servers[number].pid)
        assert longest({0}) < PAUSE
        stale = batches.updated.stale
        batches.update_priorities(last, 2.0)
        assert batches.updated.stale - stale == int((last["row_id"] >> 48 > 0).sum())
        for number in (1, 2):
            thaw(shards.servers[number].pid)
        longest({0, 1, 2})
        for number in (0, 1):
            shards.kill(number)
        assert longest({2}) < PAUSE
        freeze(shards.servers[2].pid)
        later = threading.Timer(1.5, shards.start, [1])
        later.start()
        batch = until_it_comes(batches, {1})  # All were lost: a batch waits for the first that is there.
        later.join()
        assert batch["lost_shards"].tolist() == [2] * 64


def test_a_shard_that_comes_back_at_once_without_its_rows_gives_none_of_the_old_ones(shards, table):
    """It is started again before anybody finds it lost, and another client makes its table anew."""
    fill_unevenly(shards.addresses, table, (60, 60, 60), priorities=[1.0] * 180, sampler="prioritized")
    with ShardedReplayBuffer(shards.addresses, table=table, on_loss="degrade", timeout=30) as buffer, buffer.stream(16) as batches:
        old = until_it_comes(batches, {0, 1, 2})
        shards.kill(2)
        shards.start(2, empty=True)
        with RemoteReplayBuffer(shards.addresses[2], table=table, buffer_size=60, sampler="prioritized") as one:
            one.add_batch(numbered(1000, 30), priorities=[1.0] * 30)
        until = time.monotonic() + 30
        while not (next(batches)["number"] >= 1000).any():
            assert time.monotonic() < until
        for _ in range(200):
            batch = next(batches)
            assert (batch["number"][batch["row_id"] >> 48 == 2] >= 1000).all()
        gone = TensorDict({"row_id": torch.tensor([(2 << 48) + 55])}, [1])  # A row that the new table never had: its stream ends, and is opened anew.
        batches.update_priorities(gone, 1.0)
        batches.update_priorities(old, 1.0)
        for _ in range(200):
            next(batches)
        until_it_comes(batches, {0, 1, 2})


def test_where_a_buffer_does_not_go_on_a_batch_waits_for_a_shard_that_stands_still(shards, table):
    fill_unevenly(shards.addresses, table, (60, 60, 60))
    with ShardedReplayBuffer(shards.addresses, table=table, timeout=30) as buffer, buffer.stream(64) as batches:
        next(batches)
        freeze(shards.servers[1].pid)
        later = threading.Timer(2.0, thaw, [shards.servers[1].pid])
        later.start()
        begun, longest, seen = time.monotonic(), 0.0, set[int]()
        while time.monotonic() < begun + 4:
            one = time.monotonic()
            seen |= shards_of(batch := next(batches))
            longest = max(longest, time.monotonic() - one)
            assert "lost_shards" not in batch.keys()  # noqa: SIM118 - a TensorDict iterates over its rows, not its keys.
        later.join()
        assert longest > 1
        assert seen == {0, 1, 2}
        shards.kill(2)
        shards.start(2, empty=True)
        with pytest.raises((TableNotFoundError, ServerUnavailableError)):
            deque(batches, maxlen=1)
        assert next(batches, None) is None


def test_a_stream_that_was_not_read_for_some_time_goes_on_with_shards_that_were_started_again(shards, table):
    fill_unevenly(shards.addresses, table, (60, 60, 60))
    with ShardedReplayBuffer(shards.addresses, table=table, timeout=30) as buffer, buffer.stream(64) as batches:
        next(batches)
        for number in (0, 1):
            shards.kill(number)
        for number in (0, 1):
            shards.start(number)
        seen = [next(batches) for _ in range(50)]
        assert set.union(*map(shards_of, seen)) == {0, 1, 2}


def test_a_stream_waits_for_the_first_shard_whose_limiter_lets_rows_out(addresses, table):
    with ShardedReplayBuffer(addresses, table=table, buffer_size=300, rate_limiter=MinSize(30), on_loss="degrade", timeout=20) as buffer:
        with buffer.stream(8) as batches:
            later = threading.Timer(0.5, buffer.add_batch, [numbered(0, 60)])
            later.start()
            assert len(next(batches)) == 8
            later.join()
