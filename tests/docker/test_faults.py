"""A server that does not answer, is off the network, or has another address: errors in time, and then its clients go on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from stack import Crowd, Stack, check_stored, crowd, docker, inspected, needs_docker, running

pytestmark = [needs_docker, pytest.mark.beside, pytest.mark.timeout(180)]
TIMEOUT = 5
PAUSE_SECONDS, DISCONNECTED_SECONDS = 40, 20


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("faults", TIMEOUT=TIMEOUT) as made:
        yield made


@pytest.fixture(scope="module")
def clients(stack) -> Crowd:
    return crowd(stack, pushers=2, readers=1)


def check_failed_in_time(clients: Crowd, before: list[int]) -> None:
    """Each client had errors, and no call took longer than its deadline."""
    for errors, then in zip(clients.figures("errors"), before, strict=True):
        assert errors > then
    assert max(clients.figures("longest")) < TIMEOUT + 2


def check_recovered(stack: Stack, clients: Crowd, what: str, seconds: float) -> None:
    took = clients.goes_on(seconds)
    check_stored(stack, clients.acknowledged())
    clients.check_unharmed()
    print(f"{what}: all clients went on within {took:.1f} s, longest call {max(clients.figures('longest'))} s")


def test_a_paused_server(stack, clients):
    server, before = stack.server, clients.figures("errors")
    docker("pause", server)
    time.sleep(PAUSE_SECONDS)
    docker("unpause", server)
    check_recovered(stack, clients, f"paused for {PAUSE_SECONDS} s", 20)
    check_failed_in_time(clients, before)


def test_a_server_off_the_network(stack, clients):
    server, before = stack.server, clients.figures("errors")
    docker("network", "disconnect", stack.network, server)
    time.sleep(DISCONNECTED_SECONDS)
    docker("network", "connect", "--alias", "server", stack.network, server)
    check_recovered(stack, clients, f"off the network for {DISCONNECTED_SECONDS} s", 40)
    check_failed_in_time(clients, before)


def address(stack: Stack) -> str:
    return inspected(stack.server)["NetworkSettings"]["Networks"][stack.network]["IPAddress"]


def test_a_server_that_comes_back_with_another_address(stack, clients):
    before, first = clients.figures("errors"), address(stack)
    stack.compose("rm", "--stop", "--force", "server")
    stack.compose("run", "--detach", "--no-deps", "checker", "sleep", "120")  # Takes the address that is free now.
    stack.start("server")
    assert address(stack) != first
    check_recovered(stack, clients, "another address", 20)
    assert max(clients.figures("longest")) < TIMEOUT + 2
    assert clients.figures("errors") >= before
