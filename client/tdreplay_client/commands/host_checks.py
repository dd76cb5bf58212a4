"""What `tdreplay doctor` looks at on this host: versions, memory, disk, limits of the process, proxies."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tdreplay_client.commands.check import Check, failed, ok, warning
from tdreplay_client.transport.addresses import is_here

__all__ = ["host_checks", "installed_version", "proxy_check"]

PACKAGES = ("tdreplay", "torch", "tensordict", "grpcio", "protobuf")
SHARED = Path("/dev/shm")  # noqa: S108 - it is looked at; nothing is written there.
LEAST_SHARED_BYTES = 256 << 20
LEAST_FREE, LEAST_FREE_BYTES = 0.05, 1 << 30
LEAST_FILES, LEAST_PROCESSES = 4096, 1024
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def host_checks(data_dir: str) -> Iterator[Check]:
    """Looks at this host. `data_dir`: where a server of this host keeps its rows; '': nowhere."""
    yield _versions()
    yield _shared_memory()
    if data_dir:
        yield _disk(Path(data_dir).expanduser())
    yield _limit("open files", resource.RLIMIT_NOFILE, LEAST_FILES, "ulimit -n", "each stream, writer and mapped file takes one")
    yield _limit("processes", resource.RLIMIT_NPROC, LEAST_PROCESSES, "ulimit -u", "each thread counts as one")


def _versions() -> Check:
    found = {"Python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}}
    text = ", ".join(f"{name} {number or 'is missing'}" for name, number in found.items())
    return ok("versions", text) if all(found.values()) else failed("versions", text, "pip install 'tdreplay[client]'")


def installed_version(name: str) -> str:
    """The version of an installed package; '': it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _shared_memory() -> Check:
    if not SHARED.is_dir():
        return warning("shared memory", f"{SHARED} is not there", "large batches go over gRPC; in a container, mount a tmpfs there")
    usage = shutil.disk_usage(SHARED)
    text = f"{SHARED} has {_size(usage.free)} free of {_size(usage.total)}"
    fix = "in a container, give it more: docker run --shm-size 1g, or shm_size in the compose file"
    return ok("shared memory", text) if usage.free >= LEAST_SHARED_BYTES else warning("shared memory", text, fix)


def _disk(directory: Path) -> Check:
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    usage = shutil.disk_usage(there)
    text = f"{directory} has {_size(usage.free)} free of {_size(usage.total)}"
    if not os.access(there, os.W_OK):
        return failed("disk", f"{there} cannot be written", f"let the server's user write there, or name another data directory than {directory}")
    if usage.free < max(LEAST_FREE_BYTES, int(LEAST_FREE * usage.total)):
        return warning("disk", text, "free some space, or take a smaller buffer_size: a table takes space for all of its rows")
    return ok("disk", text)


def _limit(name: str, which: int, least: int, command: str, why: str) -> Check:
    soft, _ = resource.getrlimit(which)
    text = f"{command}: {'unlimited' if soft == resource.RLIM_INFINITY else soft}"
    enough = soft == resource.RLIM_INFINITY or soft >= least
    return ok(name, text) if enough else warning(name, f"{text}: {why}", f"{command} {least}, or the same in the service's unit or container")


def proxy_check(address: str) -> Check:
    """Looks for a proxy in the environment that the calls to an address go through."""
    named = next((name for name in PROXIES if os.environ.get(name)), None)
    if named is None:
        return ok("proxy", "none is named in the environment")
    if is_here(address):
        return ok("proxy", f"{named} is set; calls to this host pass it by")
    fix = f"if {address} is not behind it, set no_proxy to its host"
    return warning("proxy", f"{named} is set: gRPC goes through it to hosts that no_proxy does not name", fix)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
