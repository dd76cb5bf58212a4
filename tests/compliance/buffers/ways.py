"""The ways of rows into a buffer, of each kind of buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from compliance.kinds import BUFFERS
from tdreplay.api import BaseReplayBuffer

# Each with the kind of its buffer, and the method.
WAYS = {f"{kind} {method}": (kind, method) for kind, made in BUFFERS.items() for method in made.ways_in}


class Way:
    """One way in: `put` gives one row, `stored` are the rows that are there."""

    def __init__(self, buffer: BaseReplayBuffer, method: str) -> None:
        self.buffer, self.method = buffer, method
        self._writer = buffer.writer() if method in ("append", "extend") else None

    def put(self, row: Any) -> None:
        insert = getattr(self._writer or self.buffer, self.method)
        insert(row if self.method in ("add", "append") else batch_of(row))

    @property
    def stored(self) -> TensorDict:
        if self._writer is not None:
            self._writer.flush()
        return self.buffer.sample_all()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def batch_of(row: Any) -> Any:
    """A row as a batch of one."""
    if isinstance(row, dict):
        return {name: batch_of(value) for name, value in row.items()}
    return row.unsqueeze(0) if isinstance(row, torch.Tensor | TensorDict) else row[None] if isinstance(row, np.ndarray) else [row]
