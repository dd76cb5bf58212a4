"""Child processes that end with the block that runs them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

__all__ = ["ChildDiedError", "check_alive", "pause", "running"]

GRACE = 5.0
"""Seconds that a child gets to end after SIGTERM, before SIGKILL."""


class ChildDiedError(RuntimeError):
    """A process that should run for ever ended."""


@contextmanager
def running(children: Sequence[BaseProcess]) -> Iterator[None]:
    """Runs the processes while the block is open, and ends those of them that still run, however the block is left."""
    try:
        with _interrupts_ignored():
            for child in children:
                child.start()
        yield
    finally:
        _end([child for child in children if child.pid is not None])


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children inherit this: Ctrl-C reaches the whole group, and it is for the parent alone to end them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(children: Sequence[BaseProcess]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.join(GRACE)
        if child.exitcode is None:
            child.kill()
            child.join()


def pause(children: Sequence[BaseProcess], seconds: float) -> None:
    """Sleeps, but not on when a child ends."""
    wait([child.sentinel for child in children], seconds)


def check_alive(children: Sequence[BaseProcess]) -> None:
    """Nothing, while all of them run.

    Raises:
        ChildDiedError: one does not; the message names it and its exit code.
    """
    for child in children:
        if child.exitcode is not None:
            raise ChildDiedError(f"{child.name} (pid {child.pid}) ended with exit code {child.exitcode}")
