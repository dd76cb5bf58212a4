"""Writes of many threads that one of them does for all."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import SchemaError
from tdreplay_server import ReplayBuffer
from tdreplay_server.durability.group_commit import GroupCommit

WAIT = 20.0


def together(*works):
    """Runs them at the same time, each in a thread of its own."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in threads)


def test_what_waits_is_written_in_groups_in_its_order_and_once():
    groups, comes, may_go_on = [], [threading.Event() for _ in range(8)], threading.Event()

    def write(group):
        groups.append(list(group))
        comes[0].set()
        may_go_on.wait(WAIT)

    def bring(number):
        after(number)
        commits.put(number)

    def after(number):
        """Returns when the ones before this number wait for their turn, or write."""
        if number:
            comes[number - 1].wait(WAIT)
            time.sleep(0.1)
            comes[number].set()

    commits = GroupCommit(write, lambda group, _: len(group) < 4)
    together(*[lambda number=number: bring(number) for number in range(7)], lambda: (after(7), may_go_on.set()))
    assert groups == [[0], [1, 2, 3, 4], [5, 6]]


def test_alone_keeps_writes_out():
    seen, held, first_comes = [], threading.Event(), threading.Event()
    commits = GroupCommit(lambda group: seen.extend(group), lambda *_: True)

    def hold():
        with commits.alone():
            held.set()
            first_comes.wait(WAIT)
            time.sleep(0.3)
            seen.append("alone")

    def bring_first():
        held.wait(WAIT)
        first_comes.set()
        commits.put(1)

    together(hold, bring_first, lambda: (first_comes.wait(WAIT), time.sleep(0.1), commits.put(2)))
    assert seen == ["alone", 1, 2]


def test_an_error_of_a_write_leaves_the_way_free():
    def write(group):
        if 0 in group:
            raise KeyError(0)

    commits = GroupCommit(write, lambda *_: False)
    with pytest.raises(KeyError):
        commits.put(0)
    commits.put(1)
    with commits.alone():
        pass


@pytest.mark.parametrize("directory", [True, False])
def test_inserts_of_many_threads_are_all_stored_once_and_a_refused_one_harms_no_other(directory, tmp_path):
    """One thread in four inserts rows that do not fit. The others' rows are all there, each block's in their order."""
    with ReplayBuffer("cpu", "cpu", 10_000, directory=tmp_path / "table" if directory else None) as buffer:
        buffer.add_batch(TensorDict({"writer": torch.full((1,), -1), "number": torch.zeros(1, dtype=torch.int64)}, [1]))
        refused = []

        def insert(writer):
            for number in range(30):
                rows = TensorDict({"writer": torch.full((3,), writer), "number": torch.arange(3 * number, 3 * number + 3)}, [3])
                if writer % 4:
                    buffer.add_batch(rows)
                    continue
                try:
                    buffer.add_batch(rows.select("writer"))
                except SchemaError as error:
                    refused.append(str(error))

        together(*[lambda writer=writer: insert(writer) for writer in range(16)])
        everything = buffer.sample_all()
        assert len(refused) == 4 * 30
        assert all("number" in error for error in refused)
        assert len(everything) == 1 + 12 * 90
        for writer in range(16):
            numbers = everything["number"][everything["writer"] == writer].tolist()
            assert numbers == (list(range(90)) if writer % 4 else [])
