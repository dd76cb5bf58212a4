"""Packages that import what they export only when it is used. torch alone takes a second to import, and much is done without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["imported_when_asked"]


def imported_when_asked(package: str, modules: dict[str, str], extra: str = "") -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562) that imports its exports when they are used.

    ``__getattr__`` raises AttributeError for any other name, and ModuleNotFoundError if a dependency is not installed.

    Args:
        package: name of the package.
        modules: each exported name -> the module that defines it. One of the package begins with a dot.
        extra: the extra of tdreplay that installs the dependencies, for messages; "" if they are always installed.
    """

    def found(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(modules[name], package), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not extra or missing.startswith("tdreplay"):
                raise
            message = f"{package}.{name} needs {missing}, which is not installed: pip install 'tdreplay[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return found, names
