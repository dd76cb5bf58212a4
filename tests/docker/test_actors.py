"""Four actors and a learner on a network without a way out, while the server is killed and stopped."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from stack import KILL, Crowd, Stack, check_stored, crowd, docker, eventually, inspected, needs_docker, running

pytestmark = [needs_docker, pytest.mark.beside, pytest.mark.timeout(300)]
KILLS = 10
GRACE = 5.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("actors") as made:
        yield made


@pytest.fixture(scope="module")
def clients(stack) -> Crowd:
    return crowd(stack, pushers=4, readers=1)


def test_rows_pushed_in_one_container_are_read_in_another(stack, clients):
    clients.goes_on(20)
    acknowledged = clients.acknowledged()
    assert len(acknowledged) == 4
    assert check_stored(stack, acknowledged) >= sum(acknowledged.values())
    clients.check_unharmed()


def test_the_network_has_no_way_out(stack):
    assert docker("network", "inspect", "--format", "{{.Internal}}", stack.network) == "true"
    assert list(inspected(stack.server)["NetworkSettings"]["Networks"]) == [stack.network]
    assert not inspected(stack.server)["HostConfig"]["PortBindings"]


def test_a_server_that_is_killed_comes_back_with_all_acknowledged_rows(stack, clients):
    server, slowest = stack.server, 0.0
    for kill in range(1, KILLS + 1):
        time.sleep(random.uniform(0, 1))
        docker("exec", server, "sh", "-c", KILL)
        eventually(lambda: inspected(server)["RestartCount"] == kill, 30, "its policy restarts the server")  # noqa: B023
        time.sleep(1)  # Until the clients have said what they had before the kill.
        slowest = max(slowest, clients.goes_on(60))
        if kill == KILLS // 2:
            time.sleep(10)  # The engine waits twice as long before each restart, until a container ran for 10 s.
    rows = check_stored(stack, clients.acknowledged())
    clients.check_unharmed()
    assert clients.figures("errors")[:4] == [0] * 4
    print(f"{KILLS} kills, {rows} rows stored once; all clients went on within {slowest:.1f} s; longest call {max(clients.figures('longest'))} s")


def test_a_server_that_is_stopped_ends_within_its_grace_with_all_acknowledged_rows(stack, clients):
    server, began = stack.server, time.monotonic()
    stack.compose("stop", "server")
    took = time.monotonic() - began
    state = inspected(server)["State"]
    acknowledged = clients.acknowledged()
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert took < GRACE + 2
    stack.compose("start", "server")
    clients.goes_on(60)
    check_stored(stack, acknowledged)
    clients.check_unharmed()
    print(f"stopped in {took:.1f} s, while 4 actors pushed")
