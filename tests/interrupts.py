"""Ctrl-C, again and again, in the middle of calls of the client, and nowhere else."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from paused_gc import paused_gc


@contextmanager
def interrupting(code: Any, seconds: float, most: int = 1000) -> Iterator[list[int]]:
    """While it lasts, a signal comes every so many seconds, and raises KeyboardInterrupt where `code` (of a function) runs, at most
    `most` times. Counts them."""
    hits = [0]

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        if frame is not None and hits[0] < most:
            hits[0] += 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        with paused_gc():
            yield hits
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted_at(step: int, package: str, call: Callable[[], object]) -> bool:
    """Whether KeyboardInterrupt was raised at line number `step` that `call` runs in the modules of `package`; else it ran to its end."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith(package):
            return None
        if event == "line":
            count += 1
            if count == step:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    with paused_gc():
        sys.settrace(trace)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False
