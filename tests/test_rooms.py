"""Each room of the source imports only what it may: the contracts in pyproject.toml hold, and each of them can fail. The map shows what is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("protos", "server", "client")
PLANTED = {
    "The two ends import the contract between them, and never each other": ("protos/tdreplay/limits.py", "import tdreplay_client.cli"),
    "The server's rooms import only what is below them": ("server/tdreplay_server/storage/ring.py", "import tdreplay_server.durability.levels"),
    "The client's rooms import only what is below them": ("client/tdreplay_client/transport/addresses.py", "import tdreplay_client.buffer"),
    "No circles": ("protos/tdreplay/errors.py", "import tdreplay.limits"),
    "The guards know neither each other nor the handlers": (
        "server/tdreplay_server/transport/guards/permits.py",
        "import tdreplay_server.transport.guards.running",
    ),
    "gRPC is known to these modules alone": ("server/tdreplay_server/transport/service.py", "import grpc"),
    "Prometheus and OpenTelemetry are known to these modules alone": ("server/tdreplay_server/tables/table.py", "import prometheus_client"),
    "TorchRL is known to its adapters alone": ("server/tdreplay_server/storage/ring.py", "import torchrl.data"),
    "Ray is known to the room ray alone": ("client/tdreplay_client/sharding/slots.py", "import ray"),
}
"""A contract, and an import that breaks it: where, and which."""


def contracts(root: Path) -> dict[str, str]:
    """Each contract's name -> KEPT or BROKEN, of the sources under a root."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    path = os.pathsep.join(str(root / source) for source in SOURCES)
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found = dict(re.findall(r"^(.+?) (KEPT|BROKEN)", done.stdout, re.MULTILINE))
    assert found, done.stdout + done.stderr
    assert (done.returncode == 0) is (set(found.values()) == {"KEPT"}), done.stdout
    return found


def test_the_contracts_are_kept():
    assert contracts(ROOT) == dict.fromkeys(PLANTED, "KEPT")


def test_each_contract_can_be_broken(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    for place, line in PLANTED.values():
        with (tmp_path / place).open("a") as file:
            file.write(f"\n{line}\n")
    assert contracts(tmp_path) == dict.fromkeys(PLANTED, "BROKEN")


def test_the_map_in_contributing_names_what_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    shown = guide[guide.index("## Where things are") : guide.index("## What a change needs")]
    names = set(re.findall(r"`([\w.]+/[\w./]*)`", shown))
    packages = [ROOT, *(package for source in SOURCES for package in ((ROOT / source), *(ROOT / source).glob("tdreplay*")))]
    found = {name for name in names for package in packages if (package / name).exists() or (package / f"{name}.py").exists()}
    assert names
    assert names - found == set()
