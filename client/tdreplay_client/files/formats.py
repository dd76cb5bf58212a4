"""The file formats, by name."""

from __future__ import annotations

from tdreplay_client.files.npz_shards import NPZ
from tdreplay_client.files.parquet_shards import PARQUET
from tdreplay_client.files.safetensors_shards import SAFETENSORS
from tdreplay_client.files.shards import FileFormat

__all__ = ["FORMATS"]

FORMATS: dict[str, FileFormat] = {made.name: made for made in (SAFETENSORS, NPZ, PARQUET)}
"""Name -> format. The name is the ending of its files, too."""
