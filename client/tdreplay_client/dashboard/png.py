"""PNG files, as far as pixels of replay buffers need them: 8 bits a channel, one to four channels."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["png"]

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> what PNG (third edition, section 11.2.1) calls them: grey, grey with alpha, RGB, RGBA."""

LEVEL = 1
"""Of compression: the page is a local one, so time counts more than bytes."""


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of these pixels: uint8 of shape [H, W, C], with 1 to 4 channels."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # Each line begins with its filter: 0, none.
    lines[:, 1:] = pixels.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(_bytes(lines), LEVEL)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _bytes(array: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array).tobytes()
