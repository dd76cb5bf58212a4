"""What a client counts, and says once a second, until SIGTERM ends it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tdreplay.errors import ReplayError


class Tally:
    """Counts, by name; ``longest`` is the longest call, in seconds, ``errors`` how many calls failed, ``error`` how the last one did."""

    def __init__(self, **counts: Any) -> None:
        self.counts: dict[str, Any] = {**counts, "errors": 0, "longest": 0.0, "error": ""}
        self.ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.ended.set())
        threading.Thread(target=self._speak, daemon=True).start()

    def _speak(self) -> None:
        while True:
            time.sleep(0.5)
            self.say()

    def say(self, **more: Any) -> None:
        """Prints a line."""
        print(json.dumps({**self.counts, **more}) + "\n", end="", flush=True)  # In one piece: another thread may print meanwhile.

    @contextmanager
    def call(self) -> Iterator[None]:
        """Times what it encloses, and counts its error."""
        began = time.monotonic()
        try:
            yield
        except ReplayError as error:
            self.counts["errors"] += 1
            self.counts["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.counts["longest"] = max(self.counts["longest"], round(time.monotonic() - began, 3))
