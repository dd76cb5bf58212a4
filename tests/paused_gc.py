"""For tests that raise KeyboardInterrupt at any moment."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_gc() -> Iterator[None]:
    """No garbage is collected while it lasts.

    A collection calls what others hung into `gc.callbacks`, as Hypothesis does, and `__del__` of anybody's objects. An error that is raised there,
    by a signal handler too, does not reach the code under test: Python prints it, and pytest takes it for a failure.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
