"""The metrics of the server's process and its disk, beside those that Prometheus' own collector has (`process_...`)."""

from __future__ import annotations

import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tdreplay_server.durability.shard_mark import NO_SHARD, ShardName
from tdreplay_server.monitoring.families import Labelled, gauge

__all__ = ["ProcessMetrics"]


class ProcessMetrics(Collector):
    """What is known of the process.

    Args:
        data_dir: Where the rows lie; None: they end with the process, and no disk is watched.
        has_failed: Whether the disk has failed.
        shard: Which shard the server is.
    """

    def __init__(self, data_dir: Path | None, has_failed: Callable[[], bool], shard: ShardName) -> None:
        self._data_dir, self._has_failed, self._began = data_dir, has_failed, time.monotonic()
        self._build: Labelled = {(version("tdreplay"), platform.python_version()): 1.0}
        self._shard: Labelled = {} if shard == NO_SHARD else {(shard.cluster, "" if shard.number is None else str(shard.number)): 1.0}

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        yield gauge("tdreplay_build_info", "1, with what the server is.", ("version", "python"), self._build)
        if self._shard:
            yield gauge("tdreplay_shard_info", "1, with which shard of which cluster the server is.", ("cluster", "shard"), self._shard)
        yield gauge("tdreplay_uptime_seconds", "How long the server has been serving.", (), {(): time.monotonic() - self._began})
        yield gauge("tdreplay_threads", "Threads of Python: each open call has one.", (), {(): threading.active_count()})
        with suppress(OSError, StopIteration):
            yield gauge("tdreplay_anonymous_memory_bytes", "Memory that no file stands behind.", (), {(): anonymous_bytes()})
        yield gauge("tdreplay_disk_failed", "1: the disk failed, and the server acknowledges nothing more.", (), {(): float(self._has_failed())})
        if self._data_dir is not None:
            yield from _disk(self._data_dir)


def anonymous_bytes() -> int:
    """The bytes of this process that no file stands behind: proc(5), RssAnon.

    Raises:
        OSError, StopIteration: the system does not say.
    """
    with Path("/proc/self/status").open() as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def _disk(data_dir: Path) -> Iterable[Metric]:
    with suppress(OSError):  # A disk that is gone has failed: there is another metric for that.
        disk = shutil.disk_usage(data_dir)
        yield gauge("tdreplay_disk_size_bytes", "The size of the disk with the data directory.", (), {(): disk.total})
        yield gauge("tdreplay_disk_free_bytes", "What of it is free for this server's user.", (), {(): disk.free})
