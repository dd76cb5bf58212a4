"""Answers that are good for a moment: many pages cost the server no more than one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["KeptAnswers"]

MOST = 64
"""Answers that are kept."""


class KeptAnswers:
    """Keeps answers for some seconds. While one is made, others who want it wait for it."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[float, Any]] = {}
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def find(self, key: Hashable, seconds: float, make: Callable[[], Any]) -> Any:
        """The answer of that key, if it is younger than so many seconds; else a new one, which `make` gives."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            made, answer = self._answers.get(key, (0.0, None))
            if time.monotonic() - made >= seconds:
                try:
                    answer = make()
                except BaseException:
                    self._forget(key)
                    raise
                self._keep(key, answer)
        return answer

    def _keep(self, key: Hashable, answer: Any) -> None:
        with self._lock:
            self._answers.pop(key, None)
            self._answers[key] = time.monotonic(), answer
            while len(self._answers) > MOST:
                oldest = next(iter(self._answers))
                del self._answers[oldest]
                self._making.pop(oldest, None)

    def _forget(self, key: Hashable) -> None:
        """Keeps nothing of what could not be answered: pages may ask for anything."""
        with self._lock:
            self._answers.pop(key, None)
            self._making.pop(key, None)
