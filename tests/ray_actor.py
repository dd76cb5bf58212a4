"""An actor of Ray that writes rows, and the rows."""

from __future__ import annotations

import threading
from typing import Any

import ray
import torch
from tensordict import TensorDict

SECONDS = 100.0


def numbered(start: int, stop: int) -> TensorDict:
    """Rows that tell which rows they are."""
    return TensorDict({"number": torch.arange(start, stop)}, [stop - start])


@ray.remote(num_cpus=0, max_restarts=0)
class Actor:
    """An actor that writes rows one after the other. The buffer came to it in a pickle."""

    def __init__(self, buffer: Any) -> None:
        self._buffer, self._stop, self._written = buffer, threading.Event(), 0
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with self._buffer.writer(flush_rows=4) as writer:
            while not self._stop.is_set():
                writer.append({"number": torch.tensor(self._written)})
                self._written += 1
                self._stop.wait(0.002)

    def written(self) -> int:
        return self._written

    def stop(self) -> int:
        """How many rows it wrote, all of which were acknowledged."""
        self._stop.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self._written
