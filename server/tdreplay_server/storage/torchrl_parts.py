"""TorchRL's writer and sampler interfaces over a `RowStorage`: where rows go, and which ones come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from tdreplay_server.storage.ring import Ring
from tdreplay_server.storage.rows import Inserts, RowStorage
from tdreplay_server.storage.torchrl import Sampler, Writer

__all__ = ["RingWriter", "UniformSampler"]


class RingWriter(Writer):
    """Writes batches of flat columns into a `RowStorage`, contiguously, and moves its ring."""

    _storage: RowStorage

    def add(self, data: TensorDictBase) -> int:
        """Writes one row, and gives its slot."""
        return int(self.extend(data.unsqueeze(0)))

    def extend(self, data: TensorDictBase) -> torch.Tensor:
        """Writes rows, of which the last `max_size` stay, and gives the slots of those, int64 of shape [kept]."""
        first, kept = self.write(dict(data.items()), len(data))
        return torch.arange(first, first + kept, device="cpu").remainder_(self._storage.max_size)

    def write(self, columns: Inserts, rows: int) -> tuple[int, int]:
        """Writes rows, of which the last `max_size` stay: the first one's slot, and how many stay."""
        storage = self._storage
        storage.ring = storage.ring.retire(rows)
        first, kept = self.put(columns, storage.ring.write_count, rows)
        storage.ring = storage.ring.commit(rows)
        return first, kept

    def put(self, columns: Inserts, row_id: int, rows: int) -> tuple[int, int]:
        """Copies rows, of which the first has that id, to their slots, which must have been retired. The ring is not moved.

        Returns:
            The slot of the first one that stays, and how many stay.
        """
        storage = self._storage
        kept = min(rows, storage.max_size)
        first = (row_id + rows - kept) % storage.max_size
        low = min(kept, storage.max_size - first)  # So many go before the end of the ring; the rest begins again at slot 0.
        storage.put(
            first, first + low, columns if low == rows else {name: column[rows - kept : rows - kept + low] for name, column in columns.items()}
        )
        if low < kept:
            storage.put(0, kept - low, {name: column[rows - kept + low :] for name, column in columns.items()})
        return first, kept

    def _empty(self, empty_write_count: bool = True) -> None:
        self._storage.ring = self._storage.ring.restart(self._storage.max_size)

    def state_dict(self) -> dict[str, Any]:
        """The ring's ends."""
        return {"oldest": self._storage.ring.oldest, "write_count": self._storage.ring.write_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the ring's ends."""
        self._storage.ring = Ring(self._storage.max_size, state_dict["oldest"], state_dict["write_count"])

    def dumps(self, path: Path) -> None:
        """Writes the ring's ends to ``path/ring.json``."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "ring.json").write_text(json.dumps(self.state_dict()))

    def loads(self, path: Path) -> None:
        """Reads what `dumps` wrote."""
        self.load_state_dict(json.loads((Path(path) / "ring.json").read_text()))


class UniformSampler(Sampler):
    """Draws live slots uniformly, with replacement."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = np.random.default_rng()  # Its methods lock it: readers may share it.

    def sample(self, storage: RowStorage, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """`batch_size` slots, int64 of shape [batch_size]; the caller sees to it that there is a row."""
        return torch.from_numpy(storage.ring.draw(batch_size, self._generator)), {}

    def _empty(self) -> None:
        """Nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take over."""

    def dumps(self, path: Path) -> None:
        """Nothing to keep."""

    def loads(self, path: Path) -> None:
        """Nothing to take over."""
