"""Values of rows as JSON: exact where a browser can read them as numbers, else as texts."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["as_json", "elements"]

MAX_EXACT = 1 << 53
"""Up to here a browser's numbers are exact."""


def as_json(value: bool | float | complex) -> bool | float | str:
    """A number as JSON has it. NaN, infinities, large whole numbers and complex numbers become texts."""
    if isinstance(value, complex):
        return f"{value.real:g}{value.imag:+g}i"
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "NaN")
    return value if abs(value) <= MAX_EXACT else str(value)


def elements(value: torch.Tensor) -> list[Any]:
    """The numbers of a tensor, one after the other, as JSON has them."""
    flat = value.reshape(-1)
    if flat.dtype.is_floating_point and flat.dtype != torch.float64:
        # NumPy writes a float32 with the fewest digits that stand for it: 0.1, and not 0.10000000149011612.
        return [as_json(float(str(number))) for number in flat.to(torch.float32).numpy()]
    return [as_json(number) for number in flat.tolist()]
