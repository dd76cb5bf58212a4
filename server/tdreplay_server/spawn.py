"""A server in a child process, for tests, notebooks and demos."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tdreplay.errors import ServerUnavailableError
from tdreplay_server.config import ENV_PREFIX, ServerConfig

__all__ = ["READY", "ServerProcess", "spawn_server"]

READY = "tdreplay-server ready at "
"""How the line starts that ``tdreplay-server serve`` prints; the address follows."""


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs in a child process.

    Attributes:
        address: where clients reach it.
        pid: of the process.
    """

    address: str
    pid: int


@contextmanager
def spawn_server(config: ServerConfig | None = None, *, start_timeout: float = 60.0, stop_timeout: float = 15.0) -> Iterator[ServerProcess]:
    """Runs a server in a child process while the context is open. The child ends with its parent, however that ends.

    Args:
        config: its settings; None: the defaults, on a free port.
        start_timeout: seconds until it must be ready.
        stop_timeout: seconds that it gets to end after SIGTERM, before SIGKILL.

    Raises:
        ServerUnavailableError: it ended, or was not ready in time; the message has the end of what it wrote.
    """
    config = ServerConfig(address="127.0.0.1:0") if config is None else config
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "tdreplay_server", "serve", "--until-stdin-closes"],
            env={**os.environ, **_environment(config)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with child:
            try:
                yield ServerProcess(_ready_address(child, errors, start_timeout), child.pid)
            finally:
                _end(child, stop_timeout)


def _environment(config: ServerConfig) -> dict[str, str]:
    settings = config.model_dump(exclude_none=True, exclude_unset=True)
    return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in settings.items()}


def _ready_address(child: subprocess.Popen[str], errors: IO[str], timeout: float) -> str:
    line = _first_line(child.stdout, timeout)
    if line.startswith(READY):
        return line.removeprefix(READY).strip()
    child.kill()
    child.wait()
    errors.seek(0)
    raise ServerUnavailableError(f"the server (pid {child.pid}) was not ready within {timeout} s. It wrote: {errors.read()[-2000:]}")


def _first_line(output: IO[str] | None, timeout: float) -> str:
    if output is None:
        return ""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        return output.readline() if selector.select(timeout) else ""


def _end(child: subprocess.Popen[str], timeout: float) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
