"""Rows in the memory of a device."""

from __future__ import annotations

import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay_server.storage.rows import RowStorage

__all__ = ["DeviceRows", "check_device"]


class DeviceRows(RowStorage):
    """Rows in the memory of a device. They end with the process."""

    def sync(self) -> None:
        """Returns at once: there is no disk."""

    def _check_room(self, size: int) -> None:
        """Passes: only the device knows."""

    def _new_column(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def check_device(device: torch.device) -> None:
    """Passes where rows can lie on the device.

    Raises:
        InvalidArgumentError: they cannot.
    """
    if device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        return
    raise InvalidArgumentError(f"storing_device ({device}) must be cpu, or a CUDA device of this machine, which has {torch.cuda.device_count()}")
