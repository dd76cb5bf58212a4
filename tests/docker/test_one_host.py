"""A learner that shares the server's /dev/shm, or is in all its namespaces, reads through shared memory; one beside it over gRPC."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stack import Crowd, Stack, eventually, needs_docker, running, said

pytestmark = [needs_docker, pytest.mark.timeout(120)]
ROWS = 2_000
SECONDS = 5.0


@contextmanager
def full(name: str, **environment: str) -> Iterator[Stack]:
    with running(name, WIDTH=4096, CAPACITY=ROWS, PAUSE=0, **environment) as made:
        pushers = Crowd(made.start("pusher"), [])
        eventually(lambda: sum(pushers.acknowledged().values()) >= ROWS, 60, "the table is full")
        made.compose("stop", "pusher")
        yield made


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with full("shared", TDREPLAY_SHARED_MEMORY_DIR="/dev/shm") as made:
        yield made


def reading(stack: Stack, service: str, *, shared: bool) -> str:
    """The id of a reader that is alone, and at work."""
    (reader,) = stack.start(service)
    eventually(lambda: said(reader).get("batches", 0) > 10, 60, f"{service} begins")
    assert said(reader)["shared"] is shared
    assert said(reader)["wrong"] == 0
    return reader


def measured(stack: Stack, service: str, *, shared: bool) -> float:
    """Batches a second, of a reader that is alone."""
    reader = reading(stack, service, shared=shared)
    before = said(reader)["batches"]
    time.sleep(SECONDS)
    after = said(reader)
    stack.compose("stop", service)
    assert after["wrong"] == 0
    return (after["batches"] - before) / SECONDS


def test_a_learner_that_shares_the_servers_memory_is_faster_than_one_beside_it(stack):
    beside = measured(stack, "reader", shared=False)
    sharing = measured(stack, "sharer", shared=True)
    print(f"batches of 256 rows of 16 KiB: {beside:.0f} a second over gRPC, {sharing:.0f} through /dev/shm ({sharing / beside:.2f} times)")
    assert sharing > beside


def test_a_learner_in_the_servers_namespaces_needs_no_folder():
    with full("namespaces") as stack:
        reading(stack, "neighbour", shared=True)
