"""Processes that are born with everything imported: a process that imports once and forks on demand, before gRPC is ever used in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOOP = """
import ctypes, os, signal, sys
import numpy, torch, tensordict
{imports}

PR_SET_PDEATHSIG = 1  # From Linux's prctl.h: a child does not outlive this process.

def body(argument):
{body}

for line in sys.stdin:
    action, _, argument = line.strip().partition(" ")
    if action == "reap":
        print("gone", os.waitstatus_to_exitcode(os.waitpid(int(argument), 0)[1]), flush=True)
    elif not os.fork():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        body(argument)
        os._exit(0)
os._exit(0)  # To take down what was imported takes seconds.
"""


@dataclass
class Child:
    """A forked process, which says one line when it is where it should be.

    Attributes:
        status: of a process that was awaited: its exit code, or minus the signal that ended it.
    """

    pid: int
    line: str
    status: int | None = None

    def kill(self) -> None:
        if self.status is None:  # Once it was awaited, its pid may be another process's.
            os.kill(self.pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether it is at its end, awaited or not."""
        return self.status is not None or Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


class Zygote:
    """Forks children that run `body`, several at once. A child prints its pid and one word more, and nothing after that."""

    def __init__(self, imports: str, body: str) -> None:
        indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
        program = LOOP.format(imports=imports, body=indented)
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @contextmanager
    def child(self, argument: str) -> Iterator[Child]:
        """A child while the context is open. Then it is killed, where it did not end by itself."""
        pid, line = self._asked(f"fork {argument}").split(maxsplit=1)
        child = Child(int(pid), line.strip())
        try:
            yield child
        finally:
            child.kill()
            self.wait(child)

    def wait(self, child: Child) -> int:
        """Waits until a child ended, and gives its status. No other child can be forked meanwhile."""
        if child.status is None:
            _, status = self._asked(f"reap {child.pid}").split()
            child.status = int(status)
        return child.status

    def _asked(self, request: str) -> str:
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        """Ends it, and the children that are left."""
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
