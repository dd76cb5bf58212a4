"""A server in a child process, for tests, notebooks and demos."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tdreplay
from tdreplay.environment import environment_name
from tdreplay.errors import ServerUnavailableError
from tdreplay.processes import Owner, OwnFile
from tdreplay_server.config import ServerConfig

__all__ = ["READY", "ServerProcess", "spawn_server"]

READY = "tdreplay-server ready at "
"""How the line starts that ``tdreplay-server serve`` prints; the address follows."""

PROGRAM = """
import os, sys
if sys.path[:1] == [""]:
    del sys.path[0]
sys.path += sys.argv.pop(1).split(os.pathsep)
from tdreplay_server.cli import main
main()
"""
"""``tdreplay-server`` without the working directory, whose modules would be taken for others', in front of what is imported. Where the packages of
this process lie comes last: they need not be installed."""


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs in a child process.

    Attributes:
        address: where clients reach it.
        pid: The id of the process.
    """

    address: str
    pid: int


@contextmanager
def spawn_server(config: ServerConfig | None = None, *, start_timeout: float = 60.0, stop_timeout: float = 15.0) -> Iterator[ServerProcess]:
    """Runs a server in a child process while the context is open. The child ends with its parent, however that ends, and whatever forks it leaves.

    What the terminal sends to the parent, as with Ctrl-C, does not reach the server: it goes on until the parent leaves the context.

    Args:
        config: its settings; None: the defaults, on a free port.
        start_timeout: seconds until it must be ready.
        stop_timeout: seconds that it gets to end after SIGTERM, before SIGKILL.

    Raises:
        ServerUnavailableError: it ended, or was not ready in time; the message has its exit status and the end of what it wrote.
    """
    config = ServerConfig(address="127.0.0.1:0") if config is None else config
    owner = Owner("the server")
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as errors, closing(OwnFile(writing)), _started(config, reading, errors) as child:
        try:
            yield ServerProcess(_ready_address(child, errors, start_timeout), child.pid)
        finally:
            if owner.is_here:
                _end(child, stop_timeout)


def _started(config: ServerConfig, lifeline: int, errors: IO[str]) -> subprocess.Popen[bytes]:
    """The child process, which has `lifeline` as its standard input, in a session of its own."""
    folders = dict.fromkeys(str(Path(file).parents[1]) for file in (__file__, str(tdreplay.__file__)))
    try:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, os.pathsep.join(folders), "serve", "--until-stdin-closes"],
            env=_environment(config),
            stdin=lifeline,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    finally:
        os.close(lifeline)


def _environment(config: ServerConfig) -> dict[str, str]:
    """This process' environment, with these settings and no others: what came from a file or a variable is in `config` already."""
    names = {name: environment_name(name) for name in ServerConfig.model_fields}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in names.values()}
    settings = config.model_dump(exclude_none=True, exclude={"config"})
    return inherited | {names[name]: str(value) for name, value in settings.items()}


def _ready_address(child: subprocess.Popen[bytes], errors: IO[str], timeout: float) -> str:
    address = _printed_address(child.stdout, timeout)
    if address:
        return address
    how = f"was not ready within {timeout} s" if address is None else _end_of(child)
    child.kill()
    child.wait()
    errors.seek(0)
    raise ServerUnavailableError(f"the server (pid {child.pid}) {how}. It wrote: {errors.read()[-2000:]}")


def _printed_address(output: IO[bytes] | None, timeout: float) -> str | None:
    """What the server prints when it is ready; empty where its output ended before that, None where the time is over."""
    if output is None:
        return ""
    text, end = b"", time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while selector.select(max(0.0, end - time.monotonic())):
            chunk = os.read(output.fileno(), 4096)
            text += chunk
            found = re.search(rf"^{READY}(\S+)\n".encode(), text, re.MULTILINE)
            if found or not chunk:
                return found[1].decode() if found else ""
    return None


def _end_of(child: subprocess.Popen[bytes]) -> str:
    """How a server ended whose output did."""
    try:
        status = child.wait(5)
    except subprocess.TimeoutExpired:
        return "closed its output before it was ready"
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    return f"{how} before it was ready"


def _end(child: subprocess.Popen[bytes], timeout: float) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
