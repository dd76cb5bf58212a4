"""Nothing that comes from the network or the disk is unpickled or evaluated: the syntax trees of all modules say so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("protos", "server", "client") for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("torch.jit", "load"), ("yaml", "load")}
FORBIDDEN_ARGUMENTS = {"allow_pickle"}


def offences(source: str) -> Iterator[str]:
    """What in a module unpickles or evaluates."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in FORBIDDEN_MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in FORBIDDEN_MODULES:
                yield module
            case ast.ImportFrom(module="torch" | "numpy", names=names):
                yield from (name.name for name in names if name.name in ("load", "save"))
            case ast.Name(id=name) if name in FORBIDDEN_NAMES:
                yield name
            case ast.Attribute(value=value, attr=attribute) if (ast.unparse(value), attribute) in FORBIDDEN_CALLS:
                yield f"{ast.unparse(value)}.{attribute}"
            case ast.keyword(arg=str(argument)) if argument in FORBIDDEN_ARGUMENTS:
                yield argument


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_neither_unpickles_nor_evaluates(path):
    assert list(offences(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "from torch import load",
        "f = torch.load",
        "eval('1')",
        "run = exec",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "def f():\n    import marshal",
    ],
)
def test_the_test_finds_what_it_looks_for(source):
    assert list(offences(source))


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 40
