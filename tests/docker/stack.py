"""The stack of docker/compose.yaml under test, with the clients of tests/docker/clients beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILES = (ROOT / "docker" / "compose.yaml", ROOT / "tests" / "docker" / "compose.yaml")
DOCKER = shutil.which("docker") or "docker"
KILL = "kill -KILL $(cat /proc/1/task/1/children)"  # What init started: a kill from outside would count as a wish, and disarm the restart policy.

needs_docker = pytest.mark.skipif(os.environ.get("TDREPLAY_DOCKER") != "1", reason="these need a Docker engine and the images: make docker-test")


def docker(*arguments: str, timeout: float = 60.0, **environment: str) -> str:
    """What a docker command prints. It must succeed."""
    variables = {**os.environ, **environment}
    done = subprocess.run([DOCKER, *arguments], env=variables, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def inspected(container: str) -> Any:
    """What the engine knows of a container."""
    return json.loads(docker("inspect", container))[0]


def eventually(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def said(container: str) -> dict[str, Any]:
    """The last line that a client printed; empty where there is none yet."""
    lines = [line for line in docker("logs", "--tail", "3", container).splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


@dataclass
class Stack:
    """A compose project of its own.

    Attributes:
        project: its name.
        environment: of the compose commands: the settings of server and clients.
        healthy_after: seconds that it took to create the server's container, and until that was healthy.
        files: compose files.
    """

    project: str
    environment: dict[str, str] = field(default_factory=dict)
    healthy_after: float = 0.0
    files: Sequence[Path] = FILES

    def compose(self, *arguments: str, timeout: float = 120.0) -> str:
        """What a compose command prints."""
        files = [word for path in self.files for word in ("--file", str(path))]
        return docker("compose", "--project-name", self.project, *files, *arguments, timeout=timeout, **self.environment)

    def start(self, service: str, count: int = 1) -> list[str]:
        """Starts a service's containers, once the server is healthy where it is the server. Their ids."""
        self.compose("up", "--detach", "--no-recreate", "--no-deps", "--wait", "--scale", f"{service}={count}", service)
        return self.compose("ps", "--all", "--quiet", service).split()

    @property
    def server(self) -> str:
        """The id of the server's container."""
        return self.compose("ps", "--all", "--quiet", "server")

    @property
    def network(self) -> str:
        """Its name."""
        return f"{self.project}_replay"

    def contents(self) -> dict[int, dict[str, int]]:
        """What of each actor is in the table."""
        lines = self.compose("run", "--rm", "--no-deps", "--no-TTY", "checker").splitlines()
        return {entry["actor"]: entry for entry in map(json.loads, lines)}

    def down(self) -> None:
        """Removes everything of it."""
        self.compose("--profile", "test", "down", "--volumes", "--remove-orphans", "--timeout", "1")


@contextmanager
def running(name: str, *, files: Sequence[Path] = FILES, servers: Sequence[str] = ("server",), **environment: object) -> Iterator[Stack]:
    """A stack with healthy servers, and nothing else yet."""
    stack = Stack(f"tdreplay-{name}", {key: str(value) for key, value in environment.items()}, files=files)
    stack.down()
    try:
        began = time.monotonic()
        stack.compose("up", "--detach", "--no-deps", "--wait", *servers, timeout=240.0)
        stack.healthy_after = time.monotonic() - began
        yield stack
    finally:
        stack.down()


@dataclass(frozen=True)
class Crowd:
    """Clients that are watched: none of them may be restarted, whatever happens to the server.

    Attributes:
        pushers: ids of containers.
        readers: ids of containers.
    """

    pushers: list[str]
    readers: list[str]

    @property
    def everyone(self) -> list[str]:
        """All of them."""
        return [*self.pushers, *self.readers]

    def acknowledged(self) -> dict[int, int]:
        """The rows that each pusher knows to be stored."""
        return {line["actor"]: line["acknowledged"] for line in map(said, self.pushers) if line}

    def progress(self) -> dict[str, int]:
        """How far each of them is."""
        return {
            client: line.get("acknowledged", line.get("batches", 0)) for client, line in zip(self.everyone, map(said, self.everyone), strict=True)
        }

    def goes_on(self, seconds: float) -> float:
        """Waits until each of them is further than it is now. How long that took."""
        began, before = time.monotonic(), self.progress()
        eventually(lambda: all(done > before[client] for client, done in self.progress().items()), seconds, "every client goes on")
        return time.monotonic() - began

    def figures(self, name: str) -> list[Any]:
        """One figure of each of them."""
        return [line[name] for line in map(said, self.everyone)]

    def check_unharmed(self) -> None:
        """None was restarted, and no reader saw a row that was not whole."""
        for client in self.everyone:
            state = inspected(client)
            assert (state["State"]["Running"], state["RestartCount"]) == (True, 0), docker("logs", "--tail", "20", client)
        assert [said(reader)["wrong"] for reader in self.readers] == [0] * len(self.readers)


def crowd(stack: Stack, pushers: int, readers: int) -> Crowd:
    """Pushers and readers that are at work."""
    made = Crowd(stack.start("pusher", pushers), stack.start("reader", readers))
    eventually(lambda: all(made.progress().values()), 60, "every client begins")
    return made


def check_stored(stack: Stack, acknowledged: dict[int, int]) -> int:
    """All rows that were acknowledged are in the table, each once, whole, and none is missing between them. How many rows there are."""
    contents = stack.contents()
    for actor, count in acknowledged.items():
        found = contents[actor]
        assert found["rows"] == found["distinct"] == found["last"] + 1 >= count, f"{count} acknowledged, found {found}"
        assert found["wrong"] == 0
    return sum(found["rows"] for found in contents.values())
