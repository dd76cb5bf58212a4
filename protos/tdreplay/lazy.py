"""Packages that import what they export when it is asked for: torch alone takes a second, and much is done without it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["imported_when_asked"]


def imported_when_asked(package: str, modules: dict[str, str], extra: str = "") -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562) that has each name of `modules`, from the module of the package that it names.

    The first raises AttributeError where there is no such name, and ModuleNotFoundError where a dependency is not installed. The message says that
    the `extra` of tdreplay brings it.
    """

    def found(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not extra or missing.startswith("tdreplay"):
                raise
            message = f"{package}.{name} needs {missing}, which is not installed: pip install 'tdreplay[{extra}]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return found, names
