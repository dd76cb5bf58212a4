"""Rows whose bytes are compared, and memory that is measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay.api import BaseReplayBuffer
from tdreplay.fields import DTYPES


def any_bits(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A tensor of random bytes: NaNs of all kinds, infinities and negative zeros among them."""
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).view(dtype)
    size = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)


def of_every_dtype(rows: int, seed: int = 0) -> dict[str, Any]:
    """Fields of every dtype: one value a row, vectors, and images, which Parquet stores as bytes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"one": (), "vector": (3, 2), "image": (33, 32), "none": (0, 4)}
    return {kind: {name: any_bits(dtype, (rows, *shape), generator) for name, dtype in DTYPES.items()} for kind, shape in shapes.items()}


def bytes_of(batch: TensorDict) -> dict[Any, bytes]:
    """The fields of a batch, in the order of its row ids, without the ids and slots themselves."""
    order = batch["row_id"].reshape(len(batch), -1)[:, 0].argsort()
    raw = {name: batch[name].contiguous() for name in batch.keys(include_nested=True, leaves_only=True) if name not in ("row_id", "index")}
    return {name: (str(value.dtype), tuple(value.shape), _rows(value)[order].numpy().tobytes()) for name, value in raw.items()}


def _rows(value: torch.Tensor) -> torch.Tensor:
    return value.view(torch.uint8).reshape(len(value), -1) if value.numel() else torch.zeros(len(value), 0)


def all_bytes(buffer: BaseReplayBuffer, fields: list[str] | None = None) -> dict[Any, bytes]:
    """What all rows of a buffer hold; final observations, and priorities where there are any, among them."""
    described = buffer.describe()
    names = fields or [field.name for field in described.schema.fields]
    return bytes_of(buffer.sample_by_index_fields(slice(None), [*names, "row_id"], priorities=described.config.sampler.has_priorities))


def peak_memory(*, again: bool = False) -> int:
    """The most bytes of memory that this process had, since it was asked with `again`."""
    if again:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
