"""One buffer over four servers: one of them is killed, clients go on without it, it comes back, and every acknowledged row is there once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stack import ROOT, Stack, check_stored, crowd, docker, eventually, needs_docker, running, said

pytestmark = [needs_docker, pytest.mark.beside, pytest.mark.timeout(300)]
FILES = (ROOT / "docker" / "compose.shards.yaml", ROOT / "tests" / "docker" / "compose.shards.yaml")
SHARDS = tuple(f"shard-{number}" for number in range(4))
LONGEST_SECONDS = 4.0
"""Of a learner's call while a shard is lost: 2 s, and as much again because everybody shares a few cores."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("shards", files=FILES, servers=SHARDS) as made:
        yield made


def test_a_shard_is_killed_and_comes_back_with_its_rows(stack):
    clients = crowd(stack, pushers=2, readers=1)
    (reader,) = clients.readers
    eventually(lambda: said(reader)["shards"] == 4, 30, "batches have rows of all shards")
    shard = stack.compose("ps", "--quiet", SHARDS[2])
    docker("kill", "--signal", "KILL", shard)  # From outside, so that it stays away.
    eventually(lambda: said(reader)["lost"] == 1, 20, "batches say that a shard is lost")
    without = clients.goes_on(20)
    docker("start", shard)
    eventually(lambda: (said(reader)["lost"], said(reader)["shards"]) == (0, 4), 60, "the shard's rows are drawn again")
    back = clients.goes_on(30)
    clients.check_unharmed()
    longest = said(reader)["longest"]
    stack.compose("stop", "pusher")
    rows = check_stored(stack, clients.acknowledged())
    print(f"{rows} rows, none lost; went on {without:.1f} s after the kill and {back:.1f} s after the return, a learner's longest call {longest} s")
    assert longest < LONGEST_SECONDS
    assert clients.figures("errors") == [0, 0, 0]
