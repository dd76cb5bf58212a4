"""SIGKILL of the server and of learners in the middle of a queue: each row comes, and twice only where its lease was given back.

A learner's batch counts as drawn when the server hears that it was taken. The server hears that with the grants of further batches, and grants are
never more than `PREFETCH` batches ahead of it. So when the server or the learner dies, at most that many batches were taken and come again.
A row that a live learner took, and said so, never comes again.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import ExitStack

import pytest
from processes import Servers
from queue_workers import BATCH, PREFETCH, TIMEOUT, Taken, Worker, learn, write

from children import Child, child_of

ROWS, WRITERS, LEARNERS, KILLS = (10_000 if int(os.environ.get("TDREPLAY_KILLS", "0")) >= 50 else 4000), 2, 3, 3
pytestmark = pytest.mark.timeout(180)


def until(condition, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def until_rows_come(learners: list[Worker]) -> None:
    """Waits until the learners took a share of the rows more than now."""
    before = count(learners)
    until(lambda: count(learners) > before + ROWS // (2 * KILLS + 1), "the queue stands still")


def count(learners: list[Worker]) -> int:
    return sum(len(taken.rows) for learner in learners for taken in learner.taken)


def test_each_row_of_a_queue_comes_and_twice_only_where_its_lease_was_given_back(tmp_path):
    servers = Servers(tmp_path / "data")
    learners = [Worker(servers.address, str(tmp_path), number) for number in range(LEARNERS)]
    writers = [Worker(servers.address, str(tmp_path), LEARNERS + number) for number in range(WRITERS)]
    kills: dict[int | None, list[tuple[float, float]]] = defaultdict(list)  # Of the server, or of the learner of that number -> from when to when.
    with ExitStack() as stack:
        server = stack.enter_context(servers.running())
        writing = [stack.enter_context(child_of(write, writer)) for writer in writers]
        children = [stack.enter_context(child_of(learn, learner)) for learner in learners]
        for kill in range(2 * KILLS):
            until_rows_come(learners)
            if kill % 2:
                number = kill // 2
                moment = killed_learner(learners[number], children[number])
                kills[number].append((moment, moment))  # It took no more.
                children[number] = stack.enter_context(child_of(learn, learners[number]))
            else:
                begin = time.monotonic()
                server.kill()
                server.wait()
                kills[None].append((begin, time.monotonic()))  # It may have sent batches until it was dead.
                server = stack.enter_context(servers.running())
        for _ in range(4):  # Enough to see their order, after those that were leased when somebody was killed last.
            until_rows_come(learners)
        for writer in writers:
            writer.path(".enough").touch()
        assert [child.wait(TIMEOUT) for child in writing] == [0] * WRITERS
        every = {(writer.number, number) for writer in writers for number in range(writer.written)}
        until(lambda: {row for learner in learners for taken in learner.taken for row in taken.rows} >= every, "some rows never come")
        time.sleep(0.5)  # For what would come too often.
        left = learners[0].open()
        assert (left.describe().available, left.describe().leased) == (0, 0)
        left.close()
    taken = [learner.taken for learner in learners]
    assert {row for batches in taken for batch in batches for row in batch.rows} == every
    repeated = check_repeats(taken, kills)
    check_order(taken, [writer.number for writer in writers], max(dead for of_one in kills.values() for _, dead in of_one))
    print(f"{len(every)} rows, {2 * KILLS} kills, {repeated} rows came again")


def killed_learner(learner: Worker, child: Child) -> float:
    """Kills a learner that has noted what it took, and has batches on their way; gives when."""
    assert not child.ended
    learner.path(".stop").touch()
    until(learner.path(".stopped").exists, "the learner takes no batch")
    moment = time.monotonic()
    child.kill()
    child.wait()
    for suffix in (".stop", ".stopped"):
        learner.path(suffix).unlink()
    return moment


def check_repeats(taken: list[list[Taken]], kills: dict[int | None, list[tuple[float, float]]]) -> int:
    """Each time but the last that a row came, it was in one of the last batches that its learner took before a kill. Gives how many came again."""
    last: dict[tuple[int, int], float] = {}
    for batch in (batch for batches in taken for batch in batches):
        last |= {row: max(last.get(row, 0.0), batch.moment) for row in batch.rows}
    repeated = 0
    for number, batches in enumerate(taken):
        at_risk = set()
        for begin, dead in kills[None] + kills[number]:
            first, last_place = (sum(batch.moment <= moment for batch in batches) for moment in (begin, dead))
            at_risk |= set(range(first - PREFETCH, last_place + PREFETCH))  # Some may still be here when the server is gone.
        for place, batch in enumerate(batches):
            again = sum(last[row] > batch.moment for row in batch.rows)
            assert not again or place in at_risk, f"batch {place} of learner {number} came again, and its lease was not given back"
            repeated += again
    assert repeated <= BATCH * PREFETCH * (len(taken) * len(kills[None]) + sum(len(kills[number]) for number in range(len(taken))))
    return repeated


def check_order(taken: list[list[Taken]], writers: list[int], last_kill: float) -> None:
    """A learner gets the rows of a writer in order, but for those that were leased when somebody was killed: these come again."""
    compared = 0
    for writer in writers:
        before = [number for batches in taken for batch in batches if batch.moment <= last_kill for one, number in batch.rows if one == writer]
        leased = max(before) + BATCH * (PREFETCH + 1) * LEARNERS
        for batches in taken:
            numbers = [number for batch in batches for one, number in batch.rows if one == writer and number > leased]
            assert numbers == sorted(set(numbers))
            compared += len(numbers)
    assert compared > ROWS // 50
