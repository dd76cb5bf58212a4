"""A server whose table is eight times its memory, what confines it, and how soon it is healthy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from stack import Crowd, Stack, docker, eventually, inspected, needs_docker, running

pytestmark = [needs_docker, pytest.mark.timeout(240)]
MEMORY = 512 << 20
ROW_FLOATS = 4096
SECONDS = 10.0
CAPACITY = (4 << 30) // (4 * ROW_FLOATS + 16)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("limits", SERVER_MEMORY=MEMORY, WIDTH=ROW_FLOATS, CAPACITY=CAPACITY, ROWS=256, PAUSE=0) as made:
        yield made


def test_a_container_is_confined_as_the_docs_say(stack):
    container = inspected(stack.server)
    host, config = container["HostConfig"], container["Config"]
    assert config["User"] == "tdreplay"
    assert docker("exec", stack.server, "id", "-u") == "10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (MEMORY, MEMORY, 2_000_000_000, 4608)
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert config["StopTimeout"] == 15
    assert container["State"]["Health"]["Status"] == "healthy"
    assert config["Healthcheck"]["Test"] == ["CMD", "tdreplay", "health"]


def test_a_server_is_soon_healthy_and_asking_it_costs_little(stack):
    took, processor = min(cost_of(stack.server, "tdreplay health") for _ in range(5))
    _, libraries = min(cost_of(stack.server, f'python -c "{LIBRARIES}"') for _ in range(5))
    cost = f"tdreplay health takes {took:.2f} s, {processor:.2f} s of a processor, its libraries {libraries:.2f}"
    print(f"healthy after {stack.healthy_after:.1f} s, with its creation; {cost}")
    assert stack.healthy_after < 60
    assert processor < 1.75 * libraries  # 1.4 measured. Seconds would measure the machine: 0.2 one day, 0.3 the next.


LIBRARIES = "import typer, grpc_health.v1.health_pb2_grpc; from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter"
"""What a command line and a call need in any case."""


def cost_of(server: str, command: str) -> tuple[float, float]:
    """How long a command takes in the server's container, and how much of a processor's time."""
    timed = f"TIMEFORMAT='%R %U %S'; {{ time {command} >/dev/null; }} 2>&1"
    took, user, system = map(float, docker("exec", server, "bash", "-c", timed).split())
    return took, user + system


def test_a_table_of_eight_times_the_memory(stack):
    pushers = Crowd(stack.start("pusher", 4), [])
    eventually(lambda: sum(pushers.acknowledged().values()) > CAPACITY, 150, "the ring is full, and its first rows are overwritten")
    clients = Crowd(pushers.pushers, stack.start("reader", 2))
    eventually(lambda: all(clients.progress().values()), 60, "both readers begin")
    before = clients.progress()
    time.sleep(SECONDS)
    done = [now - then for now, then in zip(clients.progress().values(), before.values(), strict=True)]
    assert sum(done[4:]) > 20, "rows come from the disk one after the other"
    clients.goes_on(30)
    clients.check_unharmed()
    state = inspected(stack.server)
    assert (state["State"]["OOMKilled"], state["State"]["Running"], state["RestartCount"]) == (False, True, 0)
    print_figures(stack, pushed=sum(done[:4]), read=sum(done[4:]))


def print_figures(stack: Stack, pushed: int, read: int) -> None:
    """How fast it was, and what the server's memory is made of."""
    status = docker("exec", stack.server, "sh", "-c", "cat /proc/$(tr -d ' ' </proc/1/task/1/children)/status")
    memory = ", ".join(re.findall(r"(?:VmHWM|Rss(?:Anon|File)):\s+\d+ kB", status))
    rates = f"{pushed / SECONDS:.0f} rows of 16 KiB pushed and {read / SECONDS:.1f} batches of 256 read a second"
    print(f"a table of 4 GiB in {MEMORY >> 20} MiB: {rates}; {memory}")
