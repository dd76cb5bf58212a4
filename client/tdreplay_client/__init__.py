"""The client of tdreplay: a replay buffer whose rows are on a server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdreplay_client.buffer import RemoteReplayBuffer
    from tdreplay_client.dataset import ReplayDataset
    from tdreplay_client.stream import BatchStream
    from tdreplay_client.writer import Writer

__all__ = ["BatchStream", "RemoteReplayBuffer", "ReplayDataset", "Writer"]

_MODULES = {"BatchStream": "stream", "RemoteReplayBuffer": "buffer", "ReplayDataset": "dataset", "Writer": "writer"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and torch with it: ``tdreplay health``, which runs every few seconds, does without (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
