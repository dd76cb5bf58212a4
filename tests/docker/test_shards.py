"""One buffer over four servers: shards are killed and restarted, clients go on, and every acknowledged row is there once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stack import KILL, ROOT, Crowd, Stack, check_stored, crowd, docker, eventually, inspected, needs_docker, running, said

pytestmark = [needs_docker, pytest.mark.timeout(300)]
FILES = (ROOT / "docker" / "compose.shards.yaml", ROOT / "tests" / "docker" / "compose.shards.yaml")
SHARDS = tuple(f"shard-{number}" for number in range(4))
LOSS_SECONDS = 2.0
"""The most that a learner may pause because a shard is lost."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("shards", files=FILES, servers=SHARDS) as made:
        yield made


@pytest.fixture(scope="module")
def clients(stack: Stack) -> Crowd:
    """Two actors and a learner that has rows of all shards."""
    made = crowd(stack, pushers=2, readers=1)
    eventually(lambda: said(made.readers[0])["shards"] == 4, 30, "batches have rows of all shards")
    return made


def shard(stack: Stack, number: int) -> str:
    """The id of its container."""
    return stack.compose("ps", "--all", "--quiet", SHARDS[number])


def test_a_shard_is_killed_and_comes_back_with_its_rows(stack, clients):
    (reader,) = clients.readers
    calm, killed = said(reader)["longest"], shard(stack, 2)
    docker("kill", "--signal", "KILL", killed)  # From outside, so that it stays away. Its name leads nowhere meanwhile.
    eventually(lambda: said(reader)["lost"] == 1, 20, "batches say that a shard is lost")
    without = Crowd([], [reader]).goes_on(20)  # Not the actors: they may have sent blocks that wait for this shard.
    assert said(reader)["shards"] == 3
    docker("start", killed)
    eventually(lambda: (said(reader)["lost"], said(reader)["shards"]) == (0, 4), 60, "the shard's rows are drawn again")
    back, longest = clients.goes_on(30), said(reader)["longest"]
    clients.check_unharmed()
    print(f"a learner went on {without:.1f} s after the loss was said, and all clients {back:.1f} s after the return")
    print(f"a learner's longest call: {calm} s before, {longest} s after")
    assert longest < LOSS_SECONDS + 2 * calm  # A busy host makes each call as much longer as the longest one was before.


def test_shards_that_are_killed_one_after_the_other_are_restarted(stack, clients):
    """The restart policy starts them. Nobody waits for one to be back before the next one is killed."""
    for number in (0, 1, 3):
        docker("exec", shard(stack, number), "sh", "-c", KILL)
    eventually(lambda: all(inspected(shard(stack, number))["RestartCount"] == 1 for number in (0, 1, 3)), 30, "three shards are restarted")
    eventually(lambda: (said(clients.readers[0])["lost"], said(clients.readers[0])["shards"]) == (0, 4), 60, "all shards' rows are drawn again")
    print(f"all clients went on {clients.goes_on(60):.1f} s after the last shard was back")
    clients.check_unharmed()


def test_every_acknowledged_row_is_there_once(stack, clients):
    stack.compose("stop", "pusher")
    rows = check_stored(stack, clients.acknowledged())
    assert clients.figures("errors") == [0, 0, 0]
    print(f"{rows} rows, none lost or doubled, no call failed")
