"""The peers' environments: apart from the project's own, because they need other versions of the same packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment", "LeftOutError", "directory", "installed", "python_of"]

DIRECTORY_VARIABLE = "TDREPLAY_BENCH_ENVS"
DEFAULT_DIRECTORY = Path("~/.cache/tdreplay-bench")
ANY_PYTHON = (4, 0)
ASK_SECONDS, INSTALL_SECONDS = 60, 1800
LIST_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class LeftOutError(Exception):
    """A peer cannot be measured here; the message says why."""


def directory() -> Path:
    """Where all that is built for the benchmarks lies, which stays there."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).expanduser()


@dataclass(frozen=True)
class Environment:
    """What a peer needs.

    Attributes:
        name: of the directory.
        pins: package -> version, perhaps with * at its end.
        newest_python: that it runs on.
    """

    name: str
    pins: Mapping[str, str] = field(default_factory=dict)
    newest_python: tuple[int, int] = ANY_PYTHON

    @property
    def python(self) -> Path:
        """Its interpreter, which need not be there yet."""
        return directory() / self.name / "bin" / "python"


RLLIB = {
    "dm-tree": "0.1.*",
    "gymnasium": "1.2.2",
    "lz4": "4.*",
    "ormsgpack": "1.*",
    "pandas": "3.*",
    "pyarrow": "26.*",
    "scipy": "1.*",
    "tensorboardX": "2.*",
}
"""What Ray's RLlib needs beside Ray."""
ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("reverb", {"dm-reverb": "0.14.0", "tensorflow-cpu": "2.14.*"}, newest_python=(3, 11)),
        Environment("ray", {"torch": "2.13.0", "torchrl": "0.14.1", "ray": "2.60.0", **RLLIB}),
    )
}


def python_of(environment: Environment) -> Path:
    """The interpreter of an environment, which is built where it is not there.

    Raises:
        LeftOutError: it cannot be built.
    """
    if not _complete(environment):
        _build(environment)
    if not _complete(environment):
        raise LeftOutError(f"{environment.python} does not have {dict(environment.pins)}")
    return environment.python


def installed(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, of those of the packages that are installed."""
    answer = _run([str(python), "-c", LIST_VERSIONS, *packages], ASK_SECONDS)
    versions: dict[str, str] = json.loads(answer)
    return versions


def _complete(environment: Environment) -> bool:
    if not environment.python.exists():
        return False
    versions = installed(environment.python, environment.pins)
    return all(fnmatch(versions.get(name, "").partition("+")[0], pin) for name, pin in environment.pins.items())


def _build(environment: Environment) -> None:
    base, home = _base_python(environment), environment.python.parent.parent
    print(f"Building the environment of {environment.name} in {home}: it stays there, and takes minutes once.", flush=True)
    _run([base, "-m", "venv", str(home)], INSTALL_SECONDS)
    _run([str(environment.python), "-m", "pip", "install", "--quiet", *(f"{name}=={pin}" for name, pin in environment.pins.items())], INSTALL_SECONDS)


def _base_python(environment: Environment) -> str:
    """This Python where it is old enough, or one on the PATH that is."""
    newest = environment.newest_python
    if sys.version_info[:2] <= newest:
        return sys.executable
    for minor in range(newest[1], 9, -1):
        python = shutil.which(f"python{newest[0]}.{minor}")
        if python and subprocess.run([python, "--version"], capture_output=True, timeout=ASK_SECONDS, check=False).returncode == 0:
            return python
    raise LeftOutError(f"it needs Python {newest[0]}.{newest[1]} or older, and there is none on the PATH")


def _run(command: list[str], seconds: float) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout
    except subprocess.TimeoutExpired:
        raise LeftOutError(f"{' '.join(command[:4])} ... took more than {seconds:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise LeftOutError(f"{' '.join(command[:4])} ... failed: {error.stderr[-500:].strip()}") from None
