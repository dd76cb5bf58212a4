"""Which fields are images, and their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tdreplay.errors import InvalidArgumentError
from tdreplay.fields import Field

__all__ = ["LAYOUTS", "MAX_FRAMES", "layouts", "pixels"]

CHANNELS = (1, 3, 4)
SMALLEST, SMALLEST_GREY = 8, 16
"""The least height and width of an image with channels, and of one without: smaller arrays are numbers to read."""

MAX_FRAMES = 16
"""Frames of a stack that are shown."""

GAP = 2
"""Pixels between two frames of a film strip."""

LAYOUTS = {
    "hw": "image [H, W]",
    "hwc": "image [H, W, C]",
    "chw": "image [C, H, W]",
    "thw": "stack of frames [T, H, W]",
    "thwc": "stack of frames [T, H, W, C]",
    "tchw": "stack of frames [T, C, H, W]",
}
"""The ways in which an array can be an image. H and W are the last or the middle dimensions, C is 1, 3 or 4, T counts frames."""


def layouts(field: Field) -> tuple[str, ...]:
    """The ways in which a field can be an image, the likeliest first; (): it is none.

    Four planes of the same size are rather a stack of four grey frames than one image with four channels.
    """
    pixel = field.dtype in (torch.uint8, torch.bool) or field.dtype.is_floating_point
    return tuple(layout for layout in _ORDER if pixel and _fits(field.shape, layout))


_ORDER = ("hwc", "hw", "thwc", "tchw", "chw", "thw")


def _fits(shape: tuple[int, ...], layout: str) -> bool:
    if len(shape) != len(layout):
        return False
    sizes = dict(zip(layout, shape, strict=True))
    least = SMALLEST if "c" in layout else SMALLEST_GREY
    planes = sizes.get("c", 1) in CHANNELS and sizes.get("t", 1) > 0
    likely = layout != "chw" or shape[0] != 4 or shape[1] < SMALLEST_GREY
    return planes and likely and min(sizes["h"], sizes["w"]) >= least


def pixels(value: torch.Tensor, layout: str) -> npt.NDArray[np.uint8]:
    """The pixels of an image, or of the frames of a stack side by side: uint8 of shape [H, W, C].

    Floats from 0 to 1 are multiplied by 255; other floats are scaled, so that the least is black and the greatest white.

    Raises:
        InvalidArgumentError: the value has another number of dimensions than the layout.
    """
    if layout not in LAYOUTS or value.ndim != len(layout):
        raise InvalidArgumentError(f"layout ({layout[:20]!r}) must be one of {', '.join(LAYOUTS)}, with {value.ndim} dimensions")
    sizes = dict(zip(layout, value.shape, strict=True))
    ordered = value.permute(*(layout.index(axis) for axis in "thwc" if axis in layout))
    frames = ordered.reshape(*(sizes.get(axis, 1) for axis in "thwc"))
    return _side_by_side(_eight_bits(frames[:MAX_FRAMES]))


def _eight_bits(frames: torch.Tensor) -> npt.NDArray[np.uint8]:
    if frames.dtype == torch.uint8:
        known: npt.NDArray[np.uint8] = np.asarray(frames)
        return known
    values = np.nan_to_num(frames.to(torch.float64).numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    least, greatest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if least >= 0 and greatest <= 1:
        least, greatest = 0.0, 1.0
    scaled: npt.NDArray[np.uint8] = np.rint((values - least) * (255 / (greatest - least))).astype(np.uint8)
    return scaled


def _side_by_side(frames: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Frames of shape [T, H, W, C] as one image, with a gap between two of them."""
    count, height, width, channels = frames.shape
    strip: npt.NDArray[np.uint8] = np.full((height, count * (width + GAP) - GAP, channels), 128, np.uint8)
    for number, frame in enumerate(frames):
        strip[:, number * (width + GAP) : number * (width + GAP) + width] = frame
    return strip
