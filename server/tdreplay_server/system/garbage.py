"""How little the process of a command collects garbage in what it loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """Within it modules are imported that stay: no garbage is collected meanwhile, and no collection looks at them ever after.

    For a process of tdreplay's own alone: what else there was is kept too. torch and TorchRL bring 360,000 objects. Looking through them again and
    again took a quarter of the time until a server was ready; each full collection later 150 ms, for which every call stood still; and the end of the
    process a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
