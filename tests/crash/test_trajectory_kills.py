"""SIGKILL of a server, again and again, while actors with four environments each play: each acknowledged step is there once, in order, without a gap.

TDREPLAY_KILLS says how often; ``make crash`` takes 200.
"""

from __future__ import annotations

import random
import shutil
import time
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

import pytest
from processes import KILLS, TIMEOUT, Servers
from trajectory_actors import Streams, TrajectoryActor, act, ring_in

from children import Child, child_of
from tdreplay.api import BaseReplayBuffer
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayBuffer
from tdreplay_server.checkpoints.verify import verified
from trajectory_check import Checked, check_rows
from trajectory_oracle import Ring
from trajectory_play import TRAJECTORIES
from trajectory_views import VIEWS

BUFFER_SIZE, ACTORS = 1500, 3
POINTS = ("insert-after-commit", "insert-half-written", "insert-before-intent", "insert-after-rows", "insert-after-intent", "compact-after-copy")
pytestmark = pytest.mark.timeout(120 + 10 * KILLS)


def test_episodes_have_no_gap_and_no_step_twice_however_often_the_server_is_killed(tmp_path):
    servers = Servers(tmp_path / "data")
    actors = [TrajectoryActor(servers.address, str(tmp_path), number) for number in range(ACTORS)]
    streams = Streams(actors)
    with ExitStack() as stack:
        server = stack.enter_context(servers.running())
        buffer = stack.enter_context(RemoteReplayBuffer(servers.address, buffer_size=BUFFER_SIZE, trajectories=TRAJECTORIES, timeout=TIMEOUT))
        children = [stack.enter_context(child_of(act, actor)) for actor in actors]
        for failpoint in (*islice(failpoints(), KILLS), ""):
            wait_for_the_moment(server, actors, children)
            kill(server)
            check_what_is_left(servers.data_dir, tmp_path / "copy", actors, streams)
            server = stack.enter_context(servers.running(failpoint=failpoint, commits_to_compact=50, early=True))
        until_all_played(actors, children)
        (tmp_path / "stop").touch()
        assert [child.wait() for child in children] == [0] * ACTORS
        ring = check_rows_of(buffer, [streams.rows_of(actor) for actor in actors], streams)
        print(
            f"{KILLS + 1} servers killed; {ring.write_count} rows, of {sum(actor.acknowledged * actor.envs for actor in actors)} steps acknowledged"
        )
        for view in VIEWS:
            checked = Checked(buffer, ring, view)
            checked.slots(10)
            checked.random()


def failpoints():
    """How the servers die: every other one in the middle of its work."""
    for point in cycle(POINTS):
        yield ""
        yield f"{point}:{random.randint(1, 8 if point.startswith('compact') else 120)}"


def wait_for_the_moment(server: Child, actors: list[TrajectoryActor], children: list[Child]) -> None:
    """Until the server died by itself, or all actors played on, and a moment longer."""
    until_all_played(actors, children, lambda: server.ended)
    time.sleep(random.uniform(0, 0.3))


def until_all_played(actors: list[TrajectoryActor], children: list[Child], over=lambda: False) -> None:
    before, deadline = [actor.acknowledged for actor in actors], time.monotonic() + TIMEOUT
    while not over() and any(actor.acknowledged == count for actor, count in zip(actors, before, strict=True)):
        assert not any(child.ended for child in children), "an actor did not go on"
        assert time.monotonic() < deadline, before
        time.sleep(0.005)


def kill(server: Child) -> None:
    server.kill()
    server.wait()


def check_what_is_left(data_dir: Path, scratch: Path, actors: list[TrajectoryActor], streams: Streams) -> None:
    """What the next server will find, in a copy. What was acknowledged until now must be there."""
    acknowledged = [streams.rows_of(actor) for actor in actors]
    list(verified(data_dir))
    shutil.copytree(data_dir / "tables" / "default", scratch)
    with ReplayBuffer("cpu", "cpu", BUFFER_SIZE, trajectories=TRAJECTORIES, directory=scratch) as buffer:
        check_rows_of(buffer, acknowledged, streams)
    shutil.rmtree(scratch)


def check_rows_of(buffer: BaseReplayBuffer, acknowledged: list[dict[int, int]], streams: Streams) -> Ring:
    """Passes where the rows of each environment follow one another, up to the last acknowledged one at least, and none is missing without need."""
    ring, places = ring_in(buffer, streams)
    for rows in acknowledged:
        for env, count in rows.items():
            came = places.get(env, [])
            assert came == list(range(came[0], came[0] + len(came))) if came else ring.write_count >= BUFFER_SIZE or not count
            assert not came or came[-1] + 1 >= count, f"of environment {env} {count} rows were acknowledged, and the last that is there is {came[-1]}"
            assert ring.write_count >= BUFFER_SIZE or not came or came[0] == 0
    check_rows(buffer, ring)
    return ring
