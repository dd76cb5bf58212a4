"""Runs tests in environments of their own, with other versions of Python and of what tdreplay needs: ``make matrix`` and ``make floors``.

An environment takes 1 GB, or 5 GB where pip finds no build of torch for the processor alone: PIP_EXTRA_INDEX_URL may name where one is.
A cell is PYTHON:VERSIONS:TESTS.
PYTHON is a version, ``newest`` of those that are here, or ``this`` one that runs now.
VERSIONS is ``oldest`` or ``newest``.
TESTS is ``compliance``, with client and server, or ``client``: the client alone, while the server runs with the Python that runs now.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-matrix"
PYTHONS = [f"3.{minor}" for minor in range(10, 30)]
CELLS = ("3.10:oldest:compliance", "3.10:newest:compliance", "newest:newest:compliance")
EXTRAS = {"compliance": ["server"], "client": []}
TOOLS = {"compliance": ["packaging", "pytest", "pytest-timeout", "hypothesis", "safetensors"], "client": ["packaging", "pytest"]}
PYTEST = {
    "compliance": ["tests/compliance"],
    "client": ["-c", os.devnull, "--rootdir", "tests/floors", "--confcutdir", "tests/floors", "tests/floors"],
}
SHOWN = ("tensordict", "grpcio", "protobuf", "torch", "numpy")


@dataclass(frozen=True)
class Cell:
    """What is tested with what."""

    python: str
    versions: str
    tests: str

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Reads PYTHON:VERSIONS:TESTS."""
        python, versions, tests = text.split(":")
        if versions not in ("oldest", "newest") or tests not in PYTEST:
            raise ValueError(text)
        return cls(python, versions, tests)

    def __str__(self) -> str:
        return f"{self.python}:{self.versions}:{self.tests}"


class Environment:
    """A virtual environment for one cell. What it has stays for the next run."""

    def __init__(self, cell: Cell, interpreter: str) -> None:
        self._cell, self._interpreter = cell, interpreter
        self._folder = ENVIRONMENTS / str(cell).replace(":", "-")
        self.python = self._folder / "bin" / "python"

    def install(self) -> None:
        """Brings the versions of the cell into it."""
        if not self.python.exists():
            subprocess.run([self._interpreter, "-m", "venv", self._folder], check=True)
        extras = EXTRAS[self._cell.tests]
        self._pip(*TOOLS[self._cell.tests])
        self._pip("--no-deps", "--force-reinstall", str(ROOT))
        if self._cell.versions == "oldest":
            self._pip(*self._output(str(Path(__file__).with_name("oldest.py")), *extras).split(), "torch")
        else:
            self._pip("--upgrade", f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT))

    def test(self) -> bool:
        """Whether the tests of the cell pass."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"SERVER_PYTHON": sys.executable}
        return subprocess.run([self.python, "-m", "pytest", "-q", *PYTEST[self._cell.tests]], cwd=ROOT, env=variables, check=False).returncode == 0

    def shown(self) -> str:
        """The versions of what matters most."""
        found = self._output("-c", f"from importlib.metadata import version\nfor name in {SHOWN}: print(name, version(name), end='  ')")
        return f"Python {self._output('-V').split()[1]}  {found.strip()}"

    def _pip(self, *what: str) -> None:
        """Installs, with the build of torch that the project is developed with."""
        torch = ENVIRONMENTS / "torch.txt"
        torch.write_text("".join(line for line in (ROOT / "constraints.txt").open() if line.startswith("torch==")))
        subprocess.run([self.python, "-m", "pip", "install", "--quiet", "--constraint", torch, *what], check=True)

    def _output(self, *arguments: str) -> str:
        return subprocess.run([self.python, *arguments], check=True, capture_output=True, text=True).stdout


def interpreters() -> dict[str, str]:
    """The Pythons that are here, by version, the oldest first: on the path, and those of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = {version: [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))] for version in PYTHONS}
    first = {version: next((one for one in those if one and _is(one, version)), None) for version, those in candidates.items()}
    return {version: interpreter for version, interpreter in first.items() if interpreter}


def _is(interpreter: str, version: str) -> bool:
    """Whether it runs, and is of that version: what pyenv puts on the path may be neither."""
    asked = subprocess.run([interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() == version


def run(cell: Cell, interpreter: str) -> bool:
    """Installs and tests a cell, and says how it went."""
    start = time.monotonic()
    environment = Environment(cell, interpreter)
    try:
        environment.install()
    except subprocess.CalledProcessError as error:
        print(f"-- {cell}: FAILED, it cannot be installed: {error}", flush=True)
        return False
    print(f"-- {cell}: {environment.shown()}", flush=True)
    installed = time.monotonic()
    passed = environment.test()
    print(
        f"-- {cell}: {'passed' if passed else 'FAILED'}, {installed - start:.0f} s to install, {time.monotonic() - installed:.0f} s to test",
        flush=True,
    )
    return passed


def main() -> None:
    """Runs the cells of the command line, and ends with 1 where one failed or its Python is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=[*map(Cell.parse, CELLS)], type=Cell.parse, help=f"default: {' '.join(CELLS)}")
    parser.add_argument("--skip-missing", action="store_true", help="leave out cells whose Python is not here")
    arguments = parser.parse_args()
    here = interpreters()
    print(f"-- Pythons found: {', '.join(here)}", flush=True)
    here |= {"newest": next(reversed(here.values()), sys.executable), "this": sys.executable}
    missing = [cell for cell in arguments.cells if cell.python not in here]
    for cell in missing:
        print(f"-- {cell}: not run, there is no Python {cell.python} here", flush=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    failed = [cell for cell in arguments.cells if cell not in missing and not run(cell, here[cell.python])]
    sys.exit(bool(failed or (missing and not arguments.skip_missing)))


if __name__ == "__main__":
    main()
