"""Imports of packages that change the process they are imported into: structlog, and TorchRL."""

from __future__ import annotations

import multiprocessing
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["process_unchanged"]


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Undoes what is changed within it: the start method of multiprocessing, filters of warnings, the environment, the state of the module random."""
    method, environment, numbers = multiprocessing.get_start_method(allow_none=True), dict(os.environ), random.getstate()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(numbers)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        multiprocessing.set_start_method(method, force=True)
