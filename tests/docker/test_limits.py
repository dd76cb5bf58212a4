"""A server whose table is eight times its memory, and what confines it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from stack import Crowd, Stack, docker, eventually, inspected, needs_docker, running

pytestmark = [needs_docker, pytest.mark.timeout(240)]
MEMORY = 512 << 20
ROW_FLOATS = 4096
SECONDS = 5.0
CAPACITY = (4 << 30) // (4 * ROW_FLOATS + 16)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("limits", SERVER_MEMORY=MEMORY, WIDTH=ROW_FLOATS, CAPACITY=CAPACITY, ROWS=64, PAUSE=0) as made:
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
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (MEMORY, MEMORY, 2_000_000_000, 512)
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert config["StopTimeout"] == 15
    assert container["State"]["Health"]["Status"] == "healthy"
    assert config["Healthcheck"]["Test"] == ["CMD", "tdreplay", "health"]


def test_a_table_of_eight_times_the_memory(stack):
    pushers = Crowd(stack.start("pusher", 4), [])
    eventually(lambda: sum(pushers.acknowledged().values()) > CAPACITY // 2, 150, "rows of four times the memory are there")
    clients = Crowd(pushers.pushers, stack.start("reader", 2))
    eventually(lambda: all(clients.progress().values()), 60, "both readers begin")
    before = clients.progress()
    time.sleep(SECONDS)
    clients.goes_on(30)
    clients.check_unharmed()
    state = inspected(stack.server)
    assert (state["State"]["OOMKilled"], state["State"]["Running"], state["RestartCount"]) == (False, True, 0)
    print_figures(stack, sum(clients.progress().values()) - sum(before.values()))


def print_figures(stack: Stack, done: int) -> None:
    """What the server's memory is made of."""
    status = docker("exec", stack.server, "sh", "-c", "cat /proc/$(tr -d ' ' </proc/1/task/1/children)/status")
    memory = ", ".join(re.findall(r"(?:VmHWM|Rss(?:Anon|File)):\s+\d+ kB", status))
    print(f"a table of 4 GiB in {MEMORY >> 20} MiB: {done / SECONDS:.0f} rows pushed and batches read a second; {memory}")
