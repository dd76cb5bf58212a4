"""Devices as users name them."""

from __future__ import annotations

import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import shown

__all__ = ["check_device", "parse_device"]


def parse_device(device: torch.device | str, name: str) -> torch.device:
    """The device that `device` names. This machine need not have it.

    Raises:
        InvalidArgumentError: it names none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or (isinstance(device, str) and ":" in device and str(found) != device):  # torch takes cuda:256 for cuda:0.
        raise InvalidArgumentError(f"{name} ({shown(device)}) must be a device of torch, such as cpu, cuda or cuda:1")
    return found


def check_device(device: torch.device | str, name: str) -> torch.device:
    """The device that `device` names. This machine must have it.

    Raises:
        InvalidArgumentError: it names none, or one that this machine lacks.
    """
    found = parse_device(device, name)
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise InvalidArgumentError(f"{name} ({found}) is not there: torch finds {count} CUDA devices on this machine")
    elif found.type not in ("cpu", "meta"):
        _try(found, name)
    return found


def _try(device: torch.device, name: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:  # torch was built without this device.
        raise InvalidArgumentError(f"{name} ({device}) is not there: {str(error).partition('. ')[0][:200]}") from None
