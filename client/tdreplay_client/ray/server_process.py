"""A server in a process of its own, which is started again when it ends."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tdreplay.environment import ENV_PREFIX
from tdreplay.errors import FailedPreconditionError, ServerUnavailableError

__all__ = ["SupervisedServer", "free_port", "server_options"]

log = logging.getLogger("tdreplay")
READY = "tdreplay-server ready at "
"""How the line starts that a server prints; its address follows."""
PROGRAM = """
import ctypes, os, signal, sys
if sys.path[:1] == [""]:
    del sys.path[0]
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the process that started this server is gone")
sys.path += sys.argv.pop(1).split(os.pathsep)
from tdreplay_server.__main__ import main
main()
"""
"""``tdreplay-server``, which is killed when the thread that started it ends: 1 is Linux's PR_SET_PDEATHSIG. What it acknowledged survives that."""
MOST_LOG_BYTES = 8 << 20
LEAST_PAUSE, MOST_PAUSE = 0.1, 5.0
"""Seconds between two starts that fail."""
STOP_SECONDS = 30.0
PORTS = range(15_000, 30_000)
"""Below those that the kernel gives to connections: one of them stays free while its server is down."""


class SupervisedServer:
    """A server that runs until `stop`, and with this process. When it ends by itself, or is killed, it is started again at once.

    Args:
        arguments: Says what the server is started with, before each start: the options of its command, and what its environment has beside this
            process' own.
        log_file: Where its log goes.
        began: Called with its address when it is ready.
    """

    def __init__(self, arguments: Callable[[], tuple[Sequence[str], Mapping[str, str]]], log_file: Path, began: Callable[[str], None]) -> None:
        self._arguments, self._log_file, self._began = arguments, log_file, began
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._address = self._error = ""
        self._thread = threading.Thread(target=self._run, name="tdreplay-server", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it runs, and said its address."""
        return bool(self._address)

    @property
    def error(self) -> str:
        """Why the last start failed; '': it did not."""
        return self._error

    @property
    def pid(self) -> int | None:
        """The id of its process; None: there is none now."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def wait(self, seconds: float) -> str:
        """Its address, once it is ready.

        Raises:
            FailedPreconditionError: it ended before it was ready. The message has the end of its log.
            ServerUnavailableError: it is not ready in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._address or self._error, seconds)
            if self._address:
                return self._address
            if self._error:
                raise FailedPreconditionError(self._error)
        raise ServerUnavailableError(f"the server was not ready within {seconds} s")

    def stop(self) -> None:
        """Lets it end as it does after SIGTERM, and waits until it did; one that takes too long is killed. Stopping twice is allowed."""
        with self._changed:
            self._stopping.set()
            process = self._process
            if process is not None and process.poll() is None:
                process.terminate()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        pause = LEAST_PAUSE
        while not self._stopping.is_set():
            try:
                was_ready = self._run_once()
            except (OSError, FailedPreconditionError) as error:
                was_ready = False
                self._tell("", f"the server cannot be started: {error}")
            pause = LEAST_PAUSE if was_ready else min(2 * pause, MOST_PAUSE)
            if not was_ready:
                self._stopping.wait(pause)

    def _run_once(self) -> bool:
        """Runs it until it ends. Whether it was ready."""
        _keep_short(self._log_file)
        before, was_ready = _size(self._log_file), False
        with self._log_file.open("ab") as errors, self._changed:
            if self._stopping.is_set():
                return True
            self._process = process = _started(*self._arguments(), errors.fileno())
        for line in process.stdout or ():
            text = line.decode(errors="replace").rstrip()
            if text.startswith(READY):
                was_ready = True
                self._began(text.removeprefix(READY))
                self._tell(text.removeprefix(READY), "")
        status = process.wait()
        if not self._stopping.is_set():
            how = f"the server (pid {process.pid}) ended with status {status}"
            log.warning("%s; it is started again", how)
            self._tell("", "" if was_ready else f"{how} before it was ready. It wrote: {_written_since(self._log_file, before)}")
        return was_ready

    def _tell(self, address: str, error: str) -> None:
        with self._changed:
            self._address, self._error = address, error
            self._changed.notify_all()


def server_options(settings: Mapping[str, object]) -> list[str]:
    """The options of the server's command for settings. Those that are None are not said."""
    return [_option(name.replace("_", "-"), value) for name, value in settings.items() if value is not None]


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def _started(options: Sequence[str], variables: Mapping[str, str], errors: int) -> subprocess.Popen[bytes]:
    server = importlib.util.find_spec("tdreplay_server")
    if server is None or not server.origin:
        raise FailedPreconditionError("tdreplay_server is not installed on this node: pip install 'tdreplay[server,ray]'")
    folders = os.pathsep.join(str(Path(file).parents[1]) for file in (server.origin, str(sys.modules["tdreplay"].__file__)))
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(os.getpid()), folders, "serve", *options],
        env={**inherited, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _keep_short(path: Path) -> None:
    if _size(path) > MOST_LOG_BYTES:
        path.replace(path.with_suffix(".old"))


def _written_since(path: Path, place: int) -> str:
    with path.open("rb") as file:
        file.seek(place)
        return file.read()[-2000:].decode(errors="replace").strip()


def free_port(host: str, wanted: int, seconds: float = 5.0) -> int:
    """The wanted port of a host, where it is free within so many seconds; else another one that is free now.

    Raises:
        OSError: none is.
    """
    until = time.monotonic() + seconds
    while wanted and not _is_free(host, wanted) and time.monotonic() < until:
        time.sleep(0.05)
    if wanted and _is_free(host, wanted):
        return wanted
    return next(port for port in random.SystemRandom().sample(PORTS, len(PORTS)) if _is_free(host, port))


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True
    return False
