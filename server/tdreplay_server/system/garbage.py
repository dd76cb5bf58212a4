"""The garbage collector of a command's process leaves alone what the command has loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """A block that imports modules which stay. No garbage is collected meanwhile, and no later collection looks at what is there at its end.

    Only a process that is tdreplay's own may do this, because garbage of others would stay for ever too. torch brings hundreds of thousands of
    objects. To look through them again and again took a quarter of the time until a server was ready. Later each full collection took 150 ms, in
    which every call stood still, and the end of the process took a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
