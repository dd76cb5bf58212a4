"""Processes for the crash tests, all of them children of one zygote: functions of test modules, and the command ``tdreplay-server``."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zygote import Child, Zygote

from tdreplay_server.cli import main
from tdreplay_server.spawn import READY

HERE = Path(__file__).parent
IMPORTS = f"""
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import pytest, tdreplay_client, tdreplay_server.cli
from children import call
"""


@cache
def _zygote() -> Zygote:
    zygote = Zygote(IMPORTS, "call(argument)")
    atexit.register(zygote.close)  # One for all modules: its imports take seconds.
    return zygote


def call(line: str) -> None:
    """In the child: calls the function that the line names."""
    module, function, arguments = json.loads(line)
    getattr(importlib.import_module(module), function)(*arguments)


@contextmanager
def child_of(function: Callable[..., Any], *arguments: Any) -> Iterator[Child]:
    """A child that calls a function, which says where it is as `zygote.Child` wants it. One at a time."""
    with _zygote().child(json.dumps([function.__module__, function.__name__, arguments])) as child:
        yield child


@dataclass(frozen=True)
class Command:
    """``tdreplay-server`` with some arguments, in a child."""

    child: Child
    scratch: Path

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.child.pid

    @property
    def stdout(self) -> str:
        """What it wrote so far."""
        return (self.scratch / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it wrote so far."""
        return (self.scratch / "stderr").read_text()

    def ready(self) -> str:
        """The address that it listens on, once it does."""
        self._await(lambda: self.stdout.endswith("\n"))
        assert self.stdout.startswith(READY)
        return self.stdout.removeprefix(READY).strip()

    def ended(self) -> int:
        """Its exit status, once it ended by itself."""
        self._await(lambda: self.child.ended)
        return _zygote().wait(self.child)

    def _await(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing came in {seconds} s; it wrote: {self.stdout}{self.stderr}"
            time.sleep(0.005)


@contextmanager
def command(scratch: Path, *arguments: object) -> Iterator[Command]:
    """Runs ``tdreplay-server`` with these arguments. What it writes goes to files in `scratch`, which is made."""
    scratch.mkdir(parents=True)
    with child_of(run_command, str(scratch), [str(argument) for argument in arguments]) as child:
        yield Command(child, scratch)


def run_command(scratch: str, arguments: list[str]) -> None:
    """In the child: is the command, and ends as it does."""
    sys.argv = ["tdreplay-server", *arguments]
    files = [os.open(f"{scratch}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("stdout", "stderr")]
    print(os.getpid(), "runs", flush=True)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    try:
        main()
    except SystemExit as end:
        _end(end.code)
    _end(0)  # Any other error ends the process as it ends any other.


def _end(status: Any) -> None:
    sys.stdout.flush()
    os._exit(status or 0)
