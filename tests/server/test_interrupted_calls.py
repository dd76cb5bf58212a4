"""Ctrl-C in calls of a buffer in process: nobody waits for the interrupted thread afterwards, and the rows are whole."""

from __future__ import annotations

import random
import signal
import threading
from contextlib import contextmanager, suppress

import pytest
import torch

from tdreplay.errors import EmptyTableError, InternalError, SlotIndexError
from tdreplay.rate_limiters import SamplesPerInsert
from tdreplay.samplers import Fifo, MaxHeap, Prioritized, WithoutReplacement
from tdreplay_server import ReplayBuffer
from tdreplay_server.storage.locks import ReadWriteLock

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Interrupts where Python ends objects.
WAIT = 20.0
SIZE = 8
INTERRUPTS = 200


def batch(number, rows=3):
    return {"a": torch.full((rows, 2), float(number)), "b": torch.full((rows,), float(number))}


def is_whole(rows):
    return bool((rows["a"] == rows["b"][:, None]).all())


def in_a_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(WAIT)
    return results == [True]


@contextmanager
def interrupted_often(most):
    """KeyboardInterrupt where this thread runs in the server's modules, after another while each time, at most so often. Counts them."""
    hits, seconds = [0], random.Random(1)

    def interrupt(_signal, frame):
        if hits[0] < most:
            signal.setitimer(signal.ITIMER_REAL, seconds.uniform(1e-4, 2e-3))
            if frame.f_globals.get("__name__", "").startswith("tdreplay_server"):
                hits[0] += 1
                raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    try:
        yield hits
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


OPERATIONS = {
    "add_batch": lambda buffer: buffer.add_batch(batch(1)),
    "sample_batch": lambda buffer: buffer.sample_batch(2),
    "sample_by_index": lambda buffer: buffer.sample_by_index([0]),
    "sample_all": lambda buffer: buffer.sample_all(),
    "state": lambda buffer: buffer.state(),
    "reset": lambda buffer: buffer.reset(),
    "checkpoint": lambda buffer: buffer.checkpoint("c"),
}


@pytest.mark.parametrize("kept", ["in memory", "in a directory"])
def test_calls_may_be_interrupted_anywhere(kept, tmp_path):
    directory = tmp_path / "table" if kept == "in a directory" else None
    operations = [operation for name, operation in OPERATIONS.items() if directory is not None or name != "checkpoint"]
    with ReplayBuffer("cpu", "cpu", SIZE, directory=directory) as buffer:

        def works():
            buffer.add_batch(batch(2, rows=SIZE))
            return is_whole(buffer.sample_all())

        for operation in operations:
            with interrupted_often(INTERRUPTS) as hits:
                while hits[0] < INTERRUPTS:
                    with suppress(KeyboardInterrupt, EmptyTableError, SlotIndexError):
                        operation(buffer)
            assert in_a_thread(works)
        assert is_whole(buffer.sample_all())
    if directory is not None:
        with ReplayBuffer("cpu", "cpu", SIZE, directory=directory) as again:
            assert (again.sample_all()["a"] == 2).all()


SAMPLERS = [MaxHeap(), Prioritized(0.6), WithoutReplacement()]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_calls_of_a_table_that_keeps_a_state_of_its_rows_may_be_interrupted_anywhere(sampler, tmp_path):
    with ReplayBuffer("cpu", "cpu", SIZE, sampler=sampler, directory=tmp_path / "table") as buffer:
        buffer.add_batch(batch(0, rows=SIZE))
        operations = [OPERATIONS["add_batch"], OPERATIONS["sample_batch"]]
        if sampler.has_priorities:
            operations.append(lambda buffer: buffer.update_priorities(buffer.sample_batch(4)["row_id"], 3.0))

        def works():
            buffer.add_batch(batch(2, rows=SIZE))
            return is_whole(buffer.sample_batch(2 * SIZE))

        for operation in operations:
            with interrupted_often(INTERRUPTS // 2) as hits:
                while hits[0] < INTERRUPTS // 2:
                    with suppress(KeyboardInterrupt):
                        operation(buffer)
            assert in_a_thread(works)
        batch_now = buffer.sample_batch(100)
        assert (batch_now["row_id"] >= buffer.state().write_count - SIZE).all()
        if sampler.has_priorities:
            assert set(batch_now["priority"].tolist()) == {3.0}  # New rows get the highest one.
            assert buffer.update_priorities(batch_now["row_id"], 4.0) == (100, 0)


# What counts draws -> the batches of two rows that two rows are good for.
COUNTED = {
    "fifo": ({"sampler": Fifo(), "max_times_sampled": 1}, 1),
    "uniform": ({"max_times_sampled": 3}, 3),
    "samples_per_insert": ({"rate_limiter": SamplesPerInsert(2.0, min_size=1, error_buffer=8.0)}, 2),
}


@pytest.mark.parametrize(("settings", "batches"), COUNTED.values(), ids=COUNTED)
def test_no_batch_of_an_interrupted_call_stays_with_a_learner_that_does_not_have_it(settings, batches):
    with ReplayBuffer("cpu", "cpu", SIZE, **settings) as buffer:
        with interrupted_often(INTERRUPTS // 2) as hits:
            while hits[0] < INTERRUPTS // 2:
                with suppress(KeyboardInterrupt):
                    buffer.add_batch(batch(1, rows=2))
                    for _ in range(batches):
                        buffer.sample_batch(2)

        def draws():
            return [buffer.sample_batch(2).shape[0] for _ in range(4 * batches)] == [2] * 4 * batches

        writer = threading.Thread(target=lambda: [buffer.add_batch(batch(2, rows=2)) for _ in range(4)], daemon=True)
        writer.start()
        assert in_a_thread(draws)
        writer.join(WAIT)
        assert buffer.describe().leased == 0


def test_each_row_of_an_interrupted_insert_that_is_stored_can_be_drawn():
    with ReplayBuffer("cpu", "cpu", SIZE, sampler=Fifo(), max_times_sampled=1) as buffer:
        for _ in range(5 * INTERRUPTS):
            with interrupted_often(1) as hits:
                while not hits[0]:
                    with suppress(KeyboardInterrupt):
                        buffer.add_batch(batch(1))
            buffer.add_batch(batch(2))
            buffer.sample_batch(1)
            described = buffer.describe()
            assert described.available == described.size


def test_interrupts_beside_other_threads():
    """The others' rows are all there, whole; of the interrupted thread's, those whose call returned."""
    with ReplayBuffer("cpu", "cpu", 1_000_000) as buffer:
        buffer.add_batch(batch(0))
        over, added, failed = threading.Event(), [0, 0], []

        def add(number):
            while not over.is_set():
                try:
                    buffer.add_batch(batch(number))
                    added[number - 1] += 3
                except InternalError as error:  # It was to be stored by the thread that was interrupted.
                    failed.append(error)
                assert is_whole(buffer.sample_batch(4))

        threads = [threading.Thread(target=add, args=(number,), daemon=True) for number in (1, 2)]
        for thread in threads:
            thread.start()
        own = interrupts = 0
        with interrupted_often(300) as hits:
            while hits[0] < 300:
                done = _own_calls(buffer)
                own += done
                interrupts += not done
        over.set()
        for thread in threads:
            thread.join(WAIT)
        assert not any(thread.is_alive() for thread in threads)
        values = buffer.sample_all()["b"]
        assert is_whole(buffer.sample_all())
        for number in (1, 2):
            stored = int((values == number).sum())
            assert added[number - 1] <= stored <= added[number - 1] + 3 * len(failed)
        assert 3 * own <= int((values == 3).sum()) <= 3 * (own + interrupts)


def _own_calls(buffer) -> bool:
    """Whether a call was not interrupted."""
    try:
        buffer.add_batch(batch(3))
        buffer.sample_batch(4)
    except KeyboardInterrupt:
        return False
    return True


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_thread_that_was_interrupted_inside_a_lock_gives_it_back_when_it_comes_again(kind):
    lock = ReadWriteLock()
    getattr(lock, kind)().__enter__()  # And it never leaves.
    with lock.write() if kind == "read" else lock.read():
        pass
    with lock.write():
        pass

    def enters():
        with lock.write():
            return True

    assert in_a_thread(enters)
