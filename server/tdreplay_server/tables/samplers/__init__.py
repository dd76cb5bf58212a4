"""Samplers: what chooses the rows of a batch. A new one is a module here, and an entry in `SAMPLERS`.

A sampler may import storage, and of durability only what tells it which rows are live. It knows no locks, no disk and no messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tdreplay.limits import check_choice
from tdreplay_server.tables.samplers.sampler import Draw, Sampler
from tdreplay_server.tables.samplers.uniform import Uniform

__all__ = ["SAMPLERS", "Draw", "Sampler", "Uniform", "sampler_of"]

SAMPLERS: Mapping[str, Callable[[], Sampler]] = {"uniform": Uniform}
"""The name of a sampler, as in `TableConfig` -> what makes one."""


def sampler_of(name: str) -> Sampler:
    """A new sampler of that name.

    Raises:
        InvalidArgumentError: there is none.
    """
    return SAMPLERS[check_choice(name, "sampler", SAMPLERS)]()
