"""What users import, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tdreplay_client
import tdreplay_server

SAMPLERS = {"Fifo", "Lifo", "MaxHeap", "MinHeap", "Prioritized", "Uniform", "WithoutReplacement"}
TRAJECTORIES = {"Episode", "Trajectories", "TrajectoryWriter"}
VIEWS = {"Sequences", "Transitions", "sequence_priorities"}
SHARED = SAMPLERS | TRAJECTORIES | VIEWS | {"MinSize", "Queue", "SamplesPerInsert", "TableConfig", "Updated", "importance_weights"}
"""What is exported by both ends."""


def test_the_client_exports_this_and_no_more():
    own = {"BatchStream", "RemoteReplayBuffer", "ReplayDataset", "ShardedReplayBuffer", "ShardedWriter", "TLS", "Writer"}
    of_asyncio = {"AsyncBatchStream", "AsyncEpochs", "AsyncReplayBuffer", "AsyncTrajectoryWriter", "AsyncWriter"}
    assert sorted(tdreplay_client.__all__) == sorted(SHARED | own | of_asyncio)


def test_the_server_exports_this_and_no_more():
    assert tdreplay_server.__all__ == sorted(SHARED | {"ReplayBuffer", "ReplayServer", "ServerConfig", "ServerProcess", "spawn_server"})


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import tdreplay_client", "from tdreplay_client import RemoteReplayBuffer", "import tdreplay.v1.replay_buffer_pb2_grpc"]
)
def test_the_client_imports_neither_torchrl_nor_the_server(statement):
    assert modules_after(statement).isdisjoint({"torchrl", "tdreplay_server", "pydantic", "typer", "structlog"})


def test_the_server_imports_neither_the_client_nor_torchrl():
    statement = "from tdreplay_server import *; import tdreplay_server.cli, tdreplay_server.checkpoints.restore, tdreplay_server.checkpoints.verify"
    assert modules_after(statement).isdisjoint({"tdreplay_client", "torchrl"})


@pytest.mark.parametrize("command", ["tdreplay_server.cli", "tdreplay_client.cli"])
def test_the_commands_say_their_help_and_refuse_settings_without_torch(command):
    assert modules_after(f"import {command}").isdisjoint({"torch", "numpy", "tensordict"})


@pytest.mark.parametrize("package", [tdreplay_client, tdreplay_server])
def test_a_package_gives_what_it_exports_and_nothing_else(package):
    assert set(package.__all__) < set(dir(package))
    assert [getattr(package, name).__name__ for name in package.__all__] == package.__all__
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018 - to ask is the test.
