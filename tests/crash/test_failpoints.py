"""A server that dies at a named point of its work, for every point that there is: what it left is whole, and its clients go on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from numbered import Sightings, rows, whole
from processes import Servers, recovered

from children import Child
from tdreplay.errors import ServerUnavailableError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server.checkpoints.manifest import read_manifest
from tdreplay_server.checkpoints.restore import restore
from tdreplay_server.checkpoints.verify import verified
from tdreplay_server.system import failpoints
from tdreplay_server.system.failpoints import FAILPOINTS

BUFFER_SIZE, FIELDS, BLOCK = 200, 4, 40
FILLER, ACTOR = 0, 1
TIMEOUT = 20.0
KILLED = -signal.SIGKILL
INSERTS = tuple(name for name in FAILPOINTS if name.startswith("insert-"))
COMPACTIONS = tuple(name for name in FAILPOINTS if name.startswith("compact-"))
CHECKPOINTS = tuple(name for name in FAILPOINTS if name.startswith("checkpoint-"))

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def servers(tmp_path) -> Servers:
    return Servers(tmp_path / "data")


def connected(servers: Servers, table: str = "default", buffer_size: int | None = None, timeout: float = TIMEOUT) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(servers.address, table=table, buffer_size=buffer_size, timeout=timeout)


def add(buffer: RemoteReplayBuffer, first: int, count: int) -> None:
    for number in range(first, first + count):
        buffer.add(rows(ACTOR, number, 1)[0])


def add_batch(buffer: RemoteReplayBuffer, first: int, count: int) -> None:
    buffer.add_batch(rows(ACTOR, first, count))


def write(buffer: RemoteReplayBuffer, first: int, count: int) -> None:
    with buffer.writer(flush_rows=8) as writer:
        for row in rows(ACTOR, first, count // 2).unbind(0):
            writer.append(row)
        writer.extend(rows(ACTOR, first + count // 2, count - count // 2))


KINDS: dict[str, Callable[[RemoteReplayBuffer, int, int], None]] = {"add": add, "add_batch": add_batch, "writer": write}


@contextmanager
def died(servers: Servers, server: Child) -> Iterator[None]:
    """Waits until a server died of its failpoint, and runs another one while the context is open. What the first one left must be whole."""
    assert server.wait() == KILLED
    assert len(list(verified(servers.data_dir))) > 0
    with servers.running():
        yield
        assert leftovers(servers.data_dir) == []


def leftovers(data_dir: Path) -> list[str]:
    """What a server that died may have left half made, and rows that are not the table's."""
    hidden = [path for path in data_dir.rglob("*") if re.match(r"\.(new|old)-", path.name)]
    old = [path for table in (data_dir / "tables").iterdir() for path in sorted(table.glob("rows-*"))[:-1]]
    return [str(path.relative_to(data_dir)) for path in (*hidden, *old)]


def checked(buffer: RemoteReplayBuffer, stored: dict[int, int], seen: Sightings | None = None) -> None:
    """Checks that each of the rows that actors stored is in the table once, in order, and whole."""
    seen = seen or Sightings()
    seen.note(buffer.sample_all())
    faults = seen.faults(buffer.state().write_count, stored)
    print(f"1 server died; {sum(stored.values())} rows acknowledged, {seen.checked} rows checked; found wrong: {len(faults)}")
    assert faults == []


# -- inserts --------------------------------------------------------------------------------------------------------------------------------------

PASSES = {"insert-before-intent": (0, 1), "insert-half-written": (FIELDS, FIELDS)}
"""How often the block that fills the ring passes a point, and one that overwrites rows; all others are passed once by each."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", INSERTS)
def test_rows_are_stored_once_though_the_server_died_while_it_inserted_them(servers, tmp_path, point, kind):
    seen, failpoint = Sightings(), f"{point}:{sum(PASSES.get(point, (1, 1))) + 1}"
    with servers.running(buffer_size=BUFFER_SIZE, failpoint=failpoint) as server, connected(servers) as buffer, ThreadPoolExecutor(1) as actor:
        buffer.add_batch(rows(FILLER, 0, BUFFER_SIZE))
        buffer.add_batch(rows(ACTOR, 0, BLOCK))
        seen.note(buffer.sample_all())
        inserted = actor.submit(KINDS[kind], buffer, BLOCK, BLOCK)
        assert server.wait() == KILLED
        left, write_count = recovered(servers.data_dir, tmp_path / "copy")
        seen.note(left)
        assert seen.faults(write_count, {FILLER: BUFFER_SIZE, ACTOR: BLOCK}, in_flight=True) == []
        assert len(left) >= BUFFER_SIZE - BLOCK
        with died(servers, server):
            inserted.result(2 * TIMEOUT)
            checked(buffer, {FILLER: BUFFER_SIZE, ACTOR: 2 * BLOCK}, seen)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_rows_are_stored_once_though_the_server_died_while_it_made_room_for_them(servers, kind):
    with servers.running(buffer_size=BUFFER_SIZE, failpoint="allocate-before-schema") as server, connected(servers) as buffer:
        with ThreadPoolExecutor(1) as actor:
            inserted = actor.submit(KINDS[kind], buffer, 0, BLOCK)
            with died(servers, server):
                inserted.result(2 * TIMEOUT)
                checked(buffer, {ACTOR: BLOCK})


# -- the journal ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", COMPACTIONS)
def test_rows_are_stored_once_though_the_server_died_while_it_compacted_the_journal(servers, point):
    settings = {"buffer_size": BUFFER_SIZE, "commits_to_compact": 10, "failpoint": f"{point}:4"}  # The first two, when the table is made.
    with servers.running(**settings) as server, connected(servers) as buffer, ThreadPoolExecutor(1) as actor:
        inserted = actor.submit(add, buffer, 0, 30)
        with died(servers, server):
            inserted.result(2 * TIMEOUT)
            checked(buffer, {ACTOR: 30})


@pytest.mark.parametrize("point", COMPACTIONS)
def test_rows_are_there_though_two_servers_died_the_second_while_it_opened_the_table(servers, point):
    with servers.running(buffer_size=BUFFER_SIZE) as server, connected(servers) as buffer:
        add(buffer, 0, BLOCK)
        server.kill()
        server.wait()
        with servers.running(failpoint=point, early=True) as second, died(servers, second):
            add_batch(buffer, BLOCK, BLOCK)
            checked(buffer, {ACTOR: 2 * BLOCK})


# -- tables ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", ["create-before-rename", *(f"{point}:{time}" for point in COMPACTIONS for time in (1, 2))])
def test_a_table_that_the_server_died_of_making_is_not_there_or_empty(servers, failpoint):
    with servers.running(failpoint=failpoint) as server:
        with pytest.raises(ServerUnavailableError):
            connected(servers, "made", BUFFER_SIZE, timeout=3)  # So long it hopes for another server.
        with died(servers, server):
            assert RemoteReplayBuffer.tables(servers.address) == (["made"] if failpoint.endswith("2") else [])
            with connected(servers, "made", BUFFER_SIZE) as buffer:
                add_batch(buffer, 0, BLOCK)
                checked(buffer, {ACTOR: BLOCK})


def test_a_table_that_the_server_died_of_resetting_is_empty(servers):
    with servers.running(buffer_size=BUFFER_SIZE, failpoint="reset-after-journal") as server, connected(servers) as buffer:
        buffer.add_batch(rows(FILLER, 0, BUFFER_SIZE))
        with pytest.raises(ServerUnavailableError):
            buffer.reset()
        with died(servers, server):
            assert (buffer.size, buffer.state().write_count, buffer.state().schema) == (0, BUFFER_SIZE, None)
            add_batch(buffer, 0, BLOCK)
            found = buffer.sample_all()
            assert whole(found).all()
            assert torch.equal(found["row_id"], torch.arange(BUFFER_SIZE, BUFFER_SIZE + BLOCK))


# -- checkpoints ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", CHECKPOINTS)
def test_a_checkpoint_that_the_server_died_of_writing_is_the_old_one_or_the_new_one(servers, tmp_path, point):
    with servers.running(buffer_size=BUFFER_SIZE, failpoint=f"{point}:2") as server, connected(servers) as buffer:
        buffer.add_batch(rows(FILLER, 0, BUFFER_SIZE))
        checkpoint = Path(buffer.checkpoint("kept").path)
        add_batch(buffer, 0, BLOCK)
        with pytest.raises(ServerUnavailableError):
            buffer.checkpoint("kept")
        with died(servers, server):
            assert read_manifest(checkpoint).write_count == BUFFER_SIZE + (BLOCK if point == "checkpoint-after-rename" else 0)
            checked(buffer, {FILLER: BUFFER_SIZE, ACTOR: BLOCK})
    restore(checkpoint, tmp_path / "restored", "default")
    left, write_count = recovered(tmp_path / "restored", tmp_path / "copy")
    assert whole(left).all()
    assert torch.equal(left["row_id"], torch.arange(write_count - BUFFER_SIZE, write_count)[(torch.arange(BUFFER_SIZE) - write_count) % BUFFER_SIZE])


def test_the_environment_says_which_failpoint_ends_the_process_and_when():
    program = (
        f"exec(open({failpoints.__file__!r}).read()); failpoint('other'); failpoint('this'); print('still there', flush=True); failpoint('this')"
    )
    ended = subprocess.run([sys.executable, "-c", program], env={"TDREPLAY_FAILPOINT": "this:2"}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (KILLED, "still there\n")


def test_every_failpoint_is_tried():
    others = {"allocate-before-schema", "create-before-rename", "reset-after-journal"}
    assert {*INSERTS, *COMPACTIONS, *CHECKPOINTS, *others} == set(FAILPOINTS)
