"""Processes that are born with everything imported: a process that imports once and forks on demand, before gRPC is ever used in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LOOP = """
import os, sys
import numpy, torch, tensordict
{imports}

def body(argument):
{body}

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        body(line.strip())
        os._exit(0)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@dataclass
class Child:
    """A forked process, which says one line when it is where it should be."""

    pid: int
    line: str
    killed: bool = False

    def kill(self) -> None:
        if not self.killed:
            self.killed = True  # Once: it is reaped at once, and its pid may be another process's then.
            os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """Forks children that run `body`, one at a time. A child prints its pid and one word more."""

    def __init__(self, imports: str, body: str) -> None:
        indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
        program = LOOP.format(imports=imports, body=indented)
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @contextmanager
    def child(self, argument: str) -> Iterator[Child]:
        self._process.stdin.write(f"{argument}\n")
        self._process.stdin.flush()
        pid, line = self._process.stdout.readline().split(maxsplit=1)
        child = Child(int(pid), line.strip())
        try:
            yield child
        finally:
            child.kill()
            assert self._process.stdout.readline() == "gone\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()
