"""SIGKILL of a server, again and again: what samplers and rate limiters know of the rows is there after each, all of it.

It lies in mapped files, as the rows do: what was written survives the death of the process. So a SIGKILL loses nothing, not even updates of the last
moment. TDREPLAY_KILLS says how often; ``make crash`` takes 200.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle, islice
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from priorities_model import PrioritiesModel
from processes import Servers
from raw_tables import SECONDS, RawTable, channel_to

from children import Child
from tdreplay.samplers import Prioritized
from tdreplay.schema import Schema
from tdreplay.table_config import TableConfig
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.tables.selection import BatchQuery
from tdreplay_server.tables.table import Table

KILLS = int(os.environ.get("TDREPLAY_KILLS", "6"))
FAILPOINTS = ("insert-after-commit", "insert-half-written", "insert-before-intent", "insert-after-rows", "insert-after-intent", "compact-after-copy")
SLOTS, PASS_ROWS, COUNTED_SLOTS = 256, 97, 64
DRAWS = 80 * SLOTS
"""So many draws miss no row whose priority is not among the smallest."""
RATIO, ERROR_BUFFER, BATCH, MOST = 2.0, 40.0, 8, 2
pytestmark = pytest.mark.timeout(120 + 5 * KILLS)


class Driver(threading.Thread):
    """Works on a table of its own until it is told to stop, whatever becomes of the server."""

    def __init__(self, table: RawTable) -> None:
        super().__init__(daemon=True)
        self.table, self.lock, self.stop, self.done = table, threading.Lock(), threading.Event(), 0
        self.error: BaseException | None = None
        self.random = np.random.default_rng()

    def step(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.step()
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - the test raises it.
            self.error = error

    def end(self) -> None:
        self.stop.set()
        self.join(SECONDS)
        self.check()
        assert not self.is_alive()

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class Prioritizing(Driver):
    """Inserts rows, with priorities and without, and updates them. Knows what was acknowledged, and what may have been done besides."""

    def __init__(self, table: RawTable) -> None:
        super().__init__(table)
        self.model, self.pending = PrioritiesModel(SLOTS), []

    def step(self) -> None:
        if not self.model.write_count or self.random.random() < 0.4:
            rows = int(self.random.integers(1, 33))
            given = self._priorities(rows) if self.random.random() < 0.5 else None
            self._do(lambda played: played.insert(rows, given), lambda: self.table.add(np.arange(rows), given))
        else:
            ids = self.random.integers(max(0, self.model.write_count - SLOTS - 20), self.model.write_count, 32)
            given = self._priorities(32)
            self._do(lambda played: played.update(ids, given), lambda: self.table.update(ids, given))

    def _priorities(self, rows: int) -> np.ndarray:
        """The highest ones rise slowly."""
        found: np.ndarray = np.where(self.random.random(rows) < 0.1, 0.0, self.random.uniform(0.5, 2 + self.done / 1000, rows))
        return found

    def _do(self, play: Callable[[PrioritiesModel], object], act: Callable[[], object]) -> None:
        after = PrioritiesModel(SLOTS)
        after.write_count, after.highest, after.priorities = self.model.write_count, self.model.highest, dict(self.model.priorities)
        expected = play(after)
        with self.lock:
            self.pending = [after]
        answer = act()
        assert expected is None or answer == expected
        with self.lock:
            self.model, self.pending = after, []

    def check_left(self, copy: Path) -> int:
        """Compares what a server left, in a copy of the table's directory, with what may be true. Gives how many priorities were compared."""
        with self.lock:
            allowed = [self.model, *self.pending]
        with closing(Table(TableConfig(SLOTS, sampler=Prioritized(1.0)), directory=copy)) as table:
            state = table.state()
            assert state.write_count in {model.write_count for model in allowed}
            assert state.write_count - state.size <= max(0, max(model.write_count for model in allowed) - SLOTS)
            live = range(state.write_count - state.size, state.write_count)
            return check_priorities(table, live, allowed) if state.size else 0


def check_priorities(table: Table, live: range, allowed: list[PrioritiesModel]) -> int:
    """Every live row has a priority that it may have, and so has the next one."""
    found = drawn_priorities(table)
    assert found.keys() <= set(live)
    for row_id in live:
        said = {model.priorities[row_id] for model in allowed if row_id in model.priorities}
        assert found.get(row_id, 0.0) in said, f"row {row_id} has priority {found.get(row_id, 0.0)}, and not one of {said}"
    columns = {"number": torch.zeros(1, dtype=torch.int64)}
    next_id, _ = table.insert(columns, Schema.of(columns, ()), 1)
    assert drawn_priorities(table)[next_id] in {model.highest for model in allowed}
    return len(live) + 1


def drawn_priorities(table: Table) -> dict[int, float]:
    """The ids of the rows that are drawn, and their priorities."""
    batch = table.take(table.select_random(BatchQuery(DRAWS, described=True), table.unseeded(1)))
    return dict(zip(batch["row_id"].tolist(), batch["priority"].tolist(), strict=True))


class Counting(Driver):
    """Inserts rows that are drawn twice, and draws them.

    Attributes:
        drawn: Row id -> how often it came in a batch whose call ended well: the server knows that it was taken.
        lost: Rows of batches that were taken, and never came.
    """

    def __init__(self, table: RawTable) -> None:
        super().__init__(table)
        self.drawn: Counter[int] = Counter()
        self.lost, self._at_risk = 0, 0

    def step(self) -> None:
        try:
            if self.random.random() < 0.4:
                self.table.add(np.arange(BATCH), wait_seconds=0)
            else:
                self._draw()
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._at_risk += BATCH
        else:
            self.check_counts()

    def _draw(self) -> None:
        self.drawn.update(self.table.sample(BATCH, wait_seconds=0)["row_id"].tolist())
        assert max(self.drawn.values()) <= MOST, f"a row was drawn more than {MOST} times"

    def check_counts(self) -> None:
        """What the server counts is what was taken: what came, and what was on its way when a server died."""
        found = self.table.describe()
        lost = found.sample_count - self.drawn.total()
        assert self.lost <= lost <= self.lost + self._at_risk, (
            f"{found.sample_count} draws are counted, {self.drawn.total()} came, {self.lost} were lost"
        )
        self.lost, self._at_risk = lost, 0
        balance = found.insert_count * RATIO - found.sample_count
        assert RATIO - ERROR_BUFFER <= balance <= RATIO + ERROR_BUFFER
        assert found.available == MOST * found.insert_count - found.sample_count


class Passes:
    """Draws rows without replacement, while the server lives."""

    def __init__(self, table: RawTable) -> None:
        self.table, self.ended = table, 0
        self.drawn: set[int] = set()

    def draw(self) -> None:
        self.table.describe()  # The server is there: a draw is not repeated.
        for row_id in self.table.sample(random.randint(1, 40))["row_id"].tolist():
            if len(self.drawn) == PASS_ROWS:
                self.drawn, self.ended = set(), self.ended + 1
            assert row_id not in self.drawn, f"row {row_id} comes again in its pass, of which {len(self.drawn)} rows were drawn"
            self.drawn.add(row_id)


@contextmanager
def worked_on(channel: grpc.Channel) -> Iterator[tuple[Prioritizing, Counting, Passes]]:
    """The tables, and who works on them."""
    prioritizing, counting = Prioritizing(RawTable(channel, "priorities")), Counting(RawTable(channel, "counted"))
    passes = Passes(RawTable(channel, "passes"))
    prioritizing.table.create(SLOTS, sampler=pb.Sampler(name="prioritized", alpha=1.0))
    limiter = pb.RateLimiter(name="samples_per_insert", samples_per_insert=RATIO, min_size=1, error_buffer=ERROR_BUFFER)
    counting.table.create(COUNTED_SLOTS, sampler=pb.Sampler(name="fifo"), rate_limiter=limiter, max_times_sampled=MOST)
    passes.table.create(PASS_ROWS, sampler=pb.Sampler(name="without_replacement"))
    passes.table.add(np.arange(PASS_ROWS))
    drivers = (prioritizing, counting)
    for driver in drivers:
        driver.start()
    try:
        yield prioritizing, counting, passes
    finally:
        for driver in drivers:
            driver.stop.set()


def test_priorities_counts_and_passes_survive_however_often_the_server_is_killed(tmp_path):
    servers, compared = Servers(tmp_path / "data"), 0
    with ExitStack() as stack:
        server = stack.enter_context(servers.running())
        prioritizing, counting, passes = stack.enter_context(worked_on(stack.enter_context(channel_to(servers.address))))
        dies = False
        for failpoint in (*islice(failpoints(), KILLS - 1), ""):
            work(server, prioritizing, counting, passes, dies=dies)
            server.kill()
            server.wait()
            compared += left_behind(servers.data_dir, prioritizing)
            server, dies = stack.enter_context(servers.running(failpoint=failpoint, commits_to_compact=50, early=True)), failpoint != ""
        work(server, prioritizing, counting, passes, dies=False)
        prioritizing.end()
        counting.end()
    print(
        f"{KILLS} kills; {prioritizing.done} inserts and updates, {compared} priorities compared; {passes.ended} passes; "
        f"{counting.drawn.total()} draws of rows that are drawn {MOST} times, {counting.lost} lost on their way"
    )
    assert passes.ended > 0
    assert counting.drawn.total() > 0


def failpoints() -> Iterator[str]:
    """How the servers die. Every other one does in the middle of an insert, or of a compaction."""
    for point in cycle(FAILPOINTS):
        yield ""
        yield f"{point}:{random.randint(1, 8 if point.startswith('compact') else 40)}"


def work(server: Child, prioritizing: Prioritizing, counting: Counting, passes: Passes, *, dies: bool) -> None:
    """Lets all of them work until the server may be killed, or until it dies by itself if `dies`."""
    drivers, deadline = (prioritizing, counting), time.monotonic() + SECONDS
    enough = [driver.done + random.randint(1, 20) for driver in drivers]
    if not dies:
        passes.draw()
    while not server.ended and (dies or any(driver.done < done for driver, done in zip(drivers, enough, strict=True))):
        for driver in drivers:
            driver.check()
        assert time.monotonic() < deadline, "the tables are not worked on, or the server does not come to its failpoint"
        time.sleep(0.002)
    if not dies:
        assert not server.ended
        passes.draw()


def left_behind(data_dir: Path, prioritizing: Prioritizing) -> int:
    list(verified(data_dir))
    copy = data_dir.with_name("copy")
    shutil.copytree(data_dir / "tables" / "priorities", copy)
    compared = prioritizing.check_left(copy)
    shutil.rmtree(copy)
    return compared
