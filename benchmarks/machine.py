"""Where the figures come from."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.environments import ENVIRONMENTS, installed
from benchmarks.play import PLAYS, Play
from benchmarks.work import BATCH, WORKS, Work

__all__ = ["LIMITS", "machine", "sizes", "versions"]

OWN_PACKAGES = ("tdreplay", "torch", "tensordict", "torchrl", "grpcio", "protobuf", "numpy")

LIMITS = (
    "All processes share one machine and its cores, so a server and its clients take time from each other; the ratios say more than the figures.",
    "Everything goes over loopback: nothing is shown of a real network, of TLS, of many machines, of a GPU, or of tables larger than the memory.",
    "One client at a time, but for the four learners; nobody writes while somebody reads.",
    "Reverb holds 10,000 small and 4,000 image rows, the others 100,000 and 10,000: it takes rows in slowly, and fewer rows are in its favour.",
    "Reverb's stream is the faster one of 1 and 2 workers. TorchRL's buffers have no prefetching here, which is their default.",
    "Bare gRPC sends zeros in plain messages and stores nothing. It is to compare with, and no limit: what saves copies passes it.",
    "Tables of steps hold 9,600, 8 environments' in turn, the peers' one episode after the other; Reverb holds 3,200 frames and 4,000 small steps.",
    "Content is random, and cannot be compressed. Timing excludes the checks; all figures are medians of the rounds.",
)


def machine() -> dict[str, str | int | float]:
    """The machine, and how busy it was just before."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def versions(environments: Iterable[str]) -> dict[str, dict[str, str]]:
    """Environment -> package -> version; the project's own is "tdreplay"."""
    own = {"python": platform.python_version(), **installed(Path(sys.executable), OWN_PACKAGES)}
    peers = {name: installed(ENVIRONMENTS[name].python, ENVIRONMENTS[name].pins) for name in environments}
    return {"tdreplay": own, **peers}


def sizes() -> dict[str, dict[str, int]]:
    """Work -> bytes of a row and of a batch, rows of a batch and, where all tables have as many, of a table."""
    rows = {name: Work(name).row_bytes for name in WORKS} | {name: Play(name).row_bytes for name in PLAYS}
    tables = {name: {"table_rows": WORKS[name][0]} for name in WORKS}
    return {name: {"row_bytes": size, "batch_bytes": size * BATCH, "batch_rows": BATCH, **tables.get(name, {})} for name, size in rows.items()}
