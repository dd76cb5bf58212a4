"""A real server on a free port, and rows that tell which they are."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

_numbers = itertools.count()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of one server for the whole run, which listens on TCP. Every test uses tables of its own."""
    from tdreplay_server import ReplayServer, ServerConfig  # Here: the compliance suite runs where no server is installed, too.

    with ReplayServer(ServerConfig(address="127.0.0.1:0", max_tables=100_000)) as server:
        yield server.address


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests with the marker `covers`, each combination of the other parameters runs over one value of that parameter, in turn.

    So every pair of a value and of another parameter's is there, in a part of the time. With TDREPLAY_LONG in the environment all of them run.
    """
    if os.environ.get("TDREPLAY_LONG"):
        return
    kept = [item for item in items if _is_its_turn(item)]
    config.hook.pytest_deselected(items=list(set(items).difference(kept)))
    items[:] = kept


_values: dict[tuple[str, str], list[object]] = {}
"""Of each parameter of each test, its values in order."""


def _is_its_turn(item: pytest.Item) -> bool:
    marker, callspec = item.get_closest_marker("covers"), getattr(item, "callspec", None)
    if marker is None or callspec is None:
        return True
    (name,), among = marker.args, marker.kwargs["among"]
    places = {parameter: _place(item.nodeid.partition("[")[0], parameter, value) for parameter, value in callspec.params.items()}
    return places.pop(name) == sum(places.values()) % among


def _place(test: str, parameter: str, value: object) -> int:
    values = _values.setdefault((test, parameter), [])
    found = [place for place, known in enumerate(values) if known is value]
    if not found:
        values.append(value)
    return found[0] if found else len(values) - 1


@pytest.fixture
def table() -> str:
    """A name that no other test uses."""
    return f"table-{os.getpid()}-{next(_numbers)}"


def rows(n: int, start: int = 0) -> TensorDict:
    """n rows, whose fields tell which rows they are."""
    number = torch.arange(start, start + n)
    return TensorDict(
        {
            "obs": number.float().unsqueeze(1).expand(n, 3).clone(),
            "action": number.clone(),
            "done": number % 2 == 0,
            "next": TensorDict({"obs": number.float().unsqueeze(1).repeat(1, 3) + 1}, [n]),
        },
        [n],
    )


def numbers(batch: TensorDict) -> list[int]:
    """Which rows a batch of `rows` holds, after checking that each is whole."""
    number = batch["action"]
    assert torch.equal(batch["obs"], number.float().unsqueeze(1).expand(-1, 3))
    assert torch.equal(batch["done"], number % 2 == 0)
    assert torch.equal(batch["next", "obs"], batch["obs"] + 1)
    found: list[int] = number.tolist()
    return found


def files_under(directory: Path) -> dict[str, bytes]:
    """Every file under a directory with its bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def freeze(pid: int) -> None:
    """Stops a process, and returns once every thread of it stands still: the signal alone may find them at work a moment longer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(_stands(thread) for thread in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} does not stop"


def _stands(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


def thaw(pid: int) -> None:
    """Lets a frozen process go on."""
    os.kill(pid, signal.SIGCONT)
