"""Rows that are given again are known by their digest."""

from __future__ import annotations

import hashlib

import numpy as np

from tdreplay.memory import rows_of
from tdreplay.schema import Columns

__all__ = ["digest_of"]


def digest_of(columns: Columns) -> bytes:
    """A digest of rows, whatever device and layout their columns have."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(columns):
        if columns[name].nbytes:
            digest.update(rows_of(columns[name]).view(np.uint8).data)
    return digest.digest()
