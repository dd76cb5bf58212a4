"""Processes that have a deadline, and leave nothing behind."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

__all__ = ["ProcessFailedError", "adopt_orphans", "run"]

PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""
GRACE = 10.0
LINES, LINE = 6, 160


class ProcessFailedError(Exception):
    """A process did not end well; the message has the end of what it wrote."""


def adopt_orphans() -> None:
    """Makes what a participant started ours when it ends, so that it can be ended too. Linux alone; nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(command: Sequence[str], directory: Path, variables: Mapping[str, str], log: Path, seconds: float) -> None:
    """Runs a command to its end, which must come within `seconds`; ends it and all that it started, whatever happens.

    Raises:
        ProcessFailedError: it took longer, or its exit code is not 0.
    """
    with _nothing_left(), log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=directory, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ProcessFailedError(f"did not end within {seconds:.0f} s: {_end_of(log)}") from None
    if code != 0:
        raise ProcessFailedError(f"ended with exit code {code}: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(line[:LINE] for line in log.read_text(errors="replace").strip().splitlines()[-LINES:])


@contextmanager
def _nothing_left() -> Iterator[None]:
    """Ends every process below this one, by its id, when the block is left: only one participant runs at a time."""
    try:
        yield
    finally:
        _kill(lambda process: "resource_tracker" not in _command(process))
        # These remove the semaphores of the dead, and end by themselves: given the time, nothing stays in /dev/shm.
        psutil.wait_procs(psutil.Process().children(recursive=True), timeout=GRACE)
        _kill(lambda _: True)


def _kill(chosen: Callable[[psutil.Process], bool]) -> None:
    while left := [process for process in psutil.Process().children(recursive=True) if chosen(process)]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=GRACE)


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""
