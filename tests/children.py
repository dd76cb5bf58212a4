"""Child processes that begin with everything imported: forks of multiprocessing's fork server.

To import what a server imports takes seconds of a core, and a fork takes milliseconds. Only a test that is about a fresh interpreter starts one.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from tdreplay_server import ServerConfig
from tdreplay_server.spawn import READY
from tdreplay_server.system import failpoints

PRELOADED = ["pytest", "tdreplay_client.buffer", "tdreplay_client.cli", "tdreplay_server.buffer", "tdreplay_server.cli", "tdreplay_server.server"]
PR_SET_PDEATHSIG = 1  # From Linux's prctl.h.
SECONDS = 60.0
"""Until a child must be where it should be, or at its end."""

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Child:
    """A child process that is where it should be.

    Attributes:
        process: of the child.
        line: the first line that it printed, without its end; empty where it ended before that.
    """

    process: ForkServerProcess
    line: str

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether it is at its end."""
        return self.process.exitcode is not None

    def kill(self) -> None:
        """Sends SIGKILL, unless it ended."""
        if not self.ended:
            self.process.kill()

    def wait(self, seconds: float = SECONDS) -> int:
        """Waits until it ended, and gives its exit status, or minus the signal that ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"process {self.pid} did not end in {seconds} s"
        return self.process.exitcode


@contextmanager
def child_of(function: Callable[..., object], *arguments: object) -> Iterator[Child]:
    """A child that calls a function of a module, once it printed a line. It is killed at the end, where it did not end by itself."""
    reader, writer = _forking.Pipe(duplex=False)
    with reader, _started(_call, writer, function, arguments) as process:
        writer.close()
        with open(reader.fileno(), closefd=False) as output:
            line = output.readline()
        yield Child(process, line.rstrip("\n"))


@contextmanager
def _started(target: Callable[..., object], *arguments: object) -> Iterator[ForkServerProcess]:
    process = _forking.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        if process.exitcode is None:
            process.kill()
        process.join()


def _call(output: Connection, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """In the child: calls a function whose standard output is a pipe."""
    _end_with_the_tests()
    os.dup2(output.fileno(), 1)
    function(*arguments)


def _end_with_the_tests() -> None:
    """The fork server ends with the process that runs the tests, and this process with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# -- commands and programs ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command or a program that runs in a child, as a shell would run it.

    Attributes:
        child: its process.
        scratch: directory with the files ``stdout`` and ``stderr``.
    """

    child: Child
    scratch: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.child.pid

    @property
    def stdout(self) -> str:
        """What it wrote so far."""
        return (self.scratch / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it wrote so far."""
        return (self.scratch / "stderr").read_text()

    def line(self) -> str:
        """The first line that it writes, once it did, without its end."""
        deadline = time.monotonic() + SECONDS
        while "\n" not in self.stdout:
            assert time.monotonic() < deadline, f"nothing came in {SECONDS} s; it wrote: {self.stdout}{self.stderr}"
            assert not self.child.ended, f"it ended, and wrote: {self.stdout}{self.stderr}"
            time.sleep(0.005)
        return self.stdout.splitlines()[0]

    def ready(self) -> str:
        """The address that a server listens on, once it does."""
        line = self.line()
        assert line.startswith(READY)
        return line.removeprefix(READY)

    def ended(self) -> int:
        """Its exit status, once it ended by itself."""
        return self.child.wait()


@contextmanager
def command(scratch: Path, *words: object, directory: Path | None = None, **environment: str) -> Iterator[Command]:
    """Runs a command of ours, or a Python program after ``-c``, in a child. What it writes goes to files in `scratch`, which is made.

    Its environment is this process' own, with the variables in `environment` added.
    """
    scratch.mkdir(parents=True)
    variables = {**os.environ, **environment}
    with child_of(_run, str(scratch), [str(word) for word in words], str(directory or Path.cwd()), variables) as child:
        yield Command(child, scratch)


def completed(*words: object, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command or a program as `command` does, to its end."""
    with tempfile.TemporaryDirectory() as scratch, command(Path(scratch) / "written", *words, directory=directory, **environment) as ran:
        status = ran.ended()
        return subprocess.CompletedProcess([str(word) for word in words], status, ran.stdout, ran.stderr)


def _run(scratch: str, words: list[str], directory: str, variables: dict[str, str]) -> None:
    """In the child: is the command, and ends as it does."""
    os.chdir(directory)
    _have(variables)
    files = [os.open(f"{scratch}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("stdout", "stderr")]
    print("runs", flush=True)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    _main(words)


def _have(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    importlib.reload(failpoints)  # It reads its variable once,
    tempfile.tempdir = None  # and this one too.


def _main(words: list[str]) -> None:
    name, *arguments = words
    if name == "-c":
        sys.argv = ["-c", *arguments[1:]]
        sys.modules["__main__"] = program = ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), program.__dict__)  # noqa: S102
    else:
        sys.argv = words
        _commands()[name]()


def _commands() -> dict[str, Callable[[], None]]:
    from tdreplay_client.cli import main as client
    from tdreplay_server.__main__ import main as server

    return {"tdreplay": client, "tdreplay-server": server}


# -- servers --------------------------------------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to connections: it stays free while its server is down."""
    for port in random.sample(range(15_000, 30_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@dataclass(frozen=True)
class Server:
    """A server that runs in a child.

    Attributes:
        address: where clients reach it.
        child: its process.
    """

    address: str
    child: Child

    @property
    def pid(self) -> int:
        """Process id."""
        return self.child.pid


@contextmanager
def server_process(config: ServerConfig | None = None) -> Iterator[Server]:
    """What `tdreplay_server.spawn_server` gives, sooner: for tests that need the process of a server, and are not about its start."""
    config = ServerConfig(address="127.0.0.1:0") if config is None else config
    options = [_option(name.replace("_", "-"), value) for name, value in config.model_dump(exclude_none=True, exclude={"config"}).items()]
    settings = {f"TDREPLAY_{name.upper()}" for name in ServerConfig.model_fields}
    with child_of(_serve, options, {name: value for name, value in os.environ.items() if name not in settings}) as child:
        assert child.line.startswith(READY), f"the server did not start: {child.line!r}"
        yield Server(child.line.removeprefix(READY), child)
        if not child.ended:
            child.process.terminate()
        child.wait()


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def _serve(options: list[str], variables: dict[str, str]) -> None:
    """In the child: is ``tdreplay-server serve``."""
    _have(variables)
    _main(["tdreplay-server", "serve", *options])
