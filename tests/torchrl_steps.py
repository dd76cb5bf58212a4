"""Rows for TorchRL's buffers."""

from __future__ import annotations

import torch
from tensordict import TensorDict


def steps(first: int, rows: int, *shape: int) -> TensorDict:
    """Rows that know which ones they are, in every field of them."""
    number = torch.arange(first, first + rows).reshape(rows, *[1] * len(shape)).expand(rows, *shape)
    return TensorDict(
        {
            "obs": number.unsqueeze(-1).expand(rows, *shape, 3).to(torch.float32).clone(),
            "done": (number % 2 == 0).clone(),
            "next": TensorDict({"obs": (number + 1).unsqueeze(-1).to(torch.float64).clone()}, [rows, *shape]),
        },
        [rows, *shape],
    )
