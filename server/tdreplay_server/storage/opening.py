"""Which storage a device gets."""

from __future__ import annotations

from pathlib import Path

import torch

from tdreplay_server.storage.device import DeviceRows, check_device
from tdreplay_server.storage.memmap import MemmapRows
from tdreplay_server.storage.rows import RowStorage

__all__ = ["open_storage"]


def open_storage(device: torch.device, buffer_size: int, directory: Path | None) -> RowStorage:
    """A storage of `buffer_size` rows: files in `directory` for the CPU (None: files without names), device memory for CUDA.

    Raises:
        InvalidArgumentError: the device is neither, or it is not there.
    """
    check_device(device)
    return MemmapRows(buffer_size, directory) if device.type == "cpu" else DeviceRows(buffer_size, device)
