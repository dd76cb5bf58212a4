"""What a table is fixed by when it is made: one value, from the request that makes it to the directory that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, SupportsIndex

import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import check_whole
from tdreplay_server.storage.ring import MAX_ROW_ID

__all__ = ["TableConfig"]


@dataclass(frozen=True)
class TableConfig:
    """What a table is fixed by. A reset may give it another capacity; nothing else of it changes.

    Attributes:
        buffer_size: The capacity, in rows.
        storing_device: Where the rows lie: ``cpu``, in files that are mapped into memory, or ``cuda:N``. '' in a request: where the server says.
        name: The table's name; '' for a buffer in process. The directory of a table does not hold it, because it is named after it.
        sampler: The name of what chooses the rows of a batch, among `tdreplay_server.tables.samplers.SAMPLERS`.
        limiter: The name of what decides who waits, among `tdreplay_server.tables.limiters.LIMITERS`.
    """

    buffer_size: int
    storing_device: str = "cpu"
    name: str = ""
    sampler: str = "uniform"
    limiter: str = "none"

    @classmethod
    def of(cls, buffer_size: SupportsIndex, storing_device: torch.device | str = "cpu", name: str = "") -> TableConfig:
        """The settings that somebody asks for, checked. Whether the device is there is not.

        Raises:
            InvalidArgumentError: one of them breaks its rule.
        """
        return cls(check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID), _device(storing_device), name)

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> TableConfig:
        """The settings among the entries that `to_json` gave; an older version wrote fewer of them.

        Raises:
            InvalidArgumentError: one of them breaks its rule.
            KeyError: the capacity is missing.
        """
        checked = cls.of(entries["buffer_size"], entries.get("storing_device", "cpu"))
        return replace(checked, sampler=str(entries.get("sampler", cls.sampler)), limiter=str(entries.get("limiter", cls.limiter)))

    def to_json(self) -> dict[str, Any]:
        """All but the name."""
        return {setting: value for setting, value in asdict(self).items() if setting != "name"}

    def resized(self, buffer_size: int) -> TableConfig:
        """The same table with another capacity."""
        return replace(self, buffer_size=buffer_size)


def _device(name: torch.device | str) -> str:
    """One name for each device: ``cuda`` is the current CUDA device, if there is any."""
    try:
        device = torch.device(name) if name else None
    except RuntimeError:
        raise InvalidArgumentError(f"storing_device ({str(name)[:80]!r}) must be cpu or cuda:N") from None
    if device is None or device.type == "cpu":
        return "" if device is None else "cpu"
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)
