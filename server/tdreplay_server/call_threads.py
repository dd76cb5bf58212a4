"""The threads in which calls are served: each is started when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tdreplay_server.logs import log

__all__ = ["CallThreads"]


class CallThreads(ThreadPoolExecutor):
    """The standard library's pool, which starts a thread where none is free. Where the system allows no more threads, the call waits for one.

    gRPC calls `submit` in the one thread that takes all calls in: an error would end that thread, and the server would answer nobody any more.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As in the standard library. It does not raise for want of a thread."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:
            log.error("no thread can be started for a call, so it waits for another one to end", threads=len(self._threads), error=str(error))
            return Future()
