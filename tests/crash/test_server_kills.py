"""SIGKILL of a server, again and again, while actors insert and learners read: each acknowledged row is there once, in order, and whole.

TDREPLAY_KILLS says how often; ``make crash`` takes 200. The actors and learners are processes that go on by themselves, with no care for the server.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

import pytest
from numbered import Sightings, rows
from processes import ACTORS, KILLS, LEARNERS, TIMEOUT, Place, Servers, recovered, work

from children import Child, child_of
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server.checkpoints.verify import verified

BUFFER_SIZE = 2000
INSERTS = ("insert-after-commit", "insert-half-written", "insert-before-intent", "insert-after-rows", "insert-after-intent")
COMPACTIONS = ("compact-after-copy", "compact-after-checksums")
FILLER = len(ACTORS)
"""The actor whose rows are there first."""
pytestmark = pytest.mark.timeout(120 + 10 * KILLS)


class Crew:
    """The processes that insert and read while the server is killed."""

    def __init__(self, directory: Path, address: str) -> None:
        self._directory = directory
        self.actors = [Place(address, str(directory), name, number) for number, name in enumerate(ACTORS)]
        self.learners = [Place(address, str(directory), name) for name in LEARNERS]
        self._children: dict[str, Child] = {}

    @contextmanager
    def working(self) -> Iterator[Crew]:
        with ExitStack() as stack:
            for place in (*self.actors, *self.learners):
                self._children[place.name] = stack.enter_context(child_of(work, place))
            yield self

    @property
    def acknowledged(self) -> dict[int, int]:
        """Actor -> the rows that were acknowledged so far."""
        return {FILLER: BUFFER_SIZE} | {place.actor: place.acknowledged for place in self.actors}

    def until_all_inserted(self, seconds: float = TIMEOUT) -> None:
        """Waits until each actor got an acknowledgement."""
        before, deadline = self.acknowledged, time.monotonic() + seconds
        while any(place.acknowledged == before[place.actor] for place in self.actors):
            ended = [name for name, child in self._children.items() if child.ended]
            assert not ended, f"{ended} did not go on"
            assert time.monotonic() < deadline, f"since {before} only {self.acknowledged} were acknowledged, in {seconds} s"
            time.sleep(0.005)

    def stop(self) -> None:
        """Lets all of them come to their end."""
        (self._directory / "stop").touch()
        statuses = {name: child.wait() for name, child in self._children.items()}
        assert set(statuses.values()) == {0}, statuses


def test_rows_are_there_once_whole_and_in_order_however_often_the_server_is_killed(tmp_path):
    servers, seen = Servers(tmp_path / "data"), Sightings()
    crew = Crew(tmp_path, servers.address)
    write_count = _killed_often(servers, crew, seen)
    for place in crew.learners:
        seen.add(Sightings.load(place.path(".seen")))
    stored = crew.acknowledged
    faults = seen.faults(write_count, stored)
    shared = [
        place.name for place in (*crew.actors, *crew.learners) if place.path(".shared").exists() and place.path(".shared").read_text() == "True"
    ]
    print(
        f"{KILLS + 2} servers killed; {sum(stored.values())} rows acknowledged ({', '.join(map(str, stored.values()))}), in a ring of {BUFFER_SIZE}; "
        f"{seen.checked} rows checked, {seen.unseen(write_count)} overwritten before they were seen; found wrong: {len(faults)}; "
        f"in the end, shared memory is used by: {', '.join(shared)}"
    )
    assert faults == []


def _killed_often(servers: Servers, crew: Crew, seen: Sightings) -> int:
    """Kills servers while the crew works, and looks at what each leaves behind. Gives how many rows there were in the end."""
    with ExitStack() as stack:
        server = stack.enter_context(servers.running(buffer_size=BUFFER_SIZE))
        with RemoteReplayBuffer(servers.address, timeout=TIMEOUT) as buffer:
            buffer.add_batch(rows(FILLER, 0, BUFFER_SIZE))
        stack.enter_context(crew.working())
        for failpoint in (*islice(_failpoints(), KILLS), ""):
            _kill(server, servers, crew, seen)
            server = stack.enter_context(servers.running(failpoint=failpoint, commits_to_compact=50, early=True))
            _wait_for_the_moment(server, crew, dies=failpoint != "")
        crew.until_all_inserted()
        crew.stop()
        return _kill(server, servers, crew, seen)


def _failpoints() -> Iterator[str]:
    """How the servers die. Every other one does in the middle of its work, where it would do the most harm: a signal rarely finds that moment."""
    for point in cycle(INSERTS + COMPACTIONS):
        yield ""
        yield f"{point}:{random.randint(1, 8 if point in COMPACTIONS else 120)}"


def _wait_for_the_moment(server: Child, crew: Crew, dies: bool) -> None:
    """In most cases all actors are at work again when a server is killed; in others it just starts."""
    deadline = time.monotonic() + TIMEOUT
    while dies and not server.ended:
        assert time.monotonic() < deadline, "the server does not come to its failpoint"
        time.sleep(0.005)
    if not dies and random.random() < 0.8:
        crew.until_all_inserted()
    time.sleep(0 if dies else random.uniform(0, 0.3))


def _kill(server: Child, servers: Servers, crew: Crew, seen: Sightings) -> int:
    """Kills a server, and checks what it left; gives how many rows that table counts. What was acknowledged until now must be there."""
    server.kill()
    server.wait()
    acknowledged = crew.acknowledged
    list(verified(servers.data_dir))
    found, write_count = recovered(servers.data_dir, servers.data_dir.with_name("copy"))
    seen.note(found)
    assert seen.faults(write_count, acknowledged, in_flight=True) == []
    return write_count
